"""Thousands of open streams through one gateway to simulated replicas on loopback: errors, added latency, memory.

Per stage the gateway, the replicas and the clients start afresh. Clients are processes of their own on raw sockets, so
that they are not what is measured. Beside the streams through the gateway a few go straight to the same replicas at the
same time; what the gateway adds is the difference between the two groups. Three latencies are taken:

  token    from the moment the replica computed a token until the client read it (`simulate --answer clock`)
  head     from opening a connection until the first byte of the answer, while the streams are being opened
  probe    one GET on a kept connection, while all streams are open

Tokens per second over all streams are the same in every stage, so that stages differ in open streams alone. A replica
computes one token for each of its streams in one step, so its tokens come in bursts, as those of a real one do.
Run through `make bench-gateway`, or: python benchmarks/gateway_streams.py --streams 1000 5000 10000
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from windlass_contract.endpoints import Replica, Route, RoutingTable, digest_key
from windlass_gateway.settings import Settings
from windlass_runtime.simulate.clock import age_s

KEY = "key-of-the-bench-0123456789"
AIMS_MS = {1_000: 5.0, 5_000: 15.0, 10_000: 40.0}
"""Added p95 of a token that a stage should stay below."""
_TOKEN = re.compile(rb'"content":"([A-Za-z0-9_-]{4})"')
_PROBES = 64
_KEPT_DESCRIPTORS = 480  # idle connections to replicas, and everything else


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a client sends requests; `key` is empty for a replica."""

    address: str
    path: str
    key: str = ""

    def head(self, method: str, tail: str) -> str:
        authorization = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"{method} {self.path}{tail} HTTP/1.1\r\nHost: {self.address}\r\n{authorization}"

    def open_stream(self) -> bytes:
        body = json.dumps(
            {"model": "simulated", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        ).encode()
        head = self.head("POST", "/chat/completions")
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def probe(self) -> bytes:
        return f"{self.head('GET', '/models')}\r\n".encode()


# --- one client process ---


class Group:
    """What the streams of one kind have seen."""

    def __init__(self) -> None:
        self.opened = 0
        self.errors: list[str] = []
        self.heads_s: list[float] = []
        self.ages_s: list[float] = []
        self.probes_s: list[float] = []


class Stream(asyncio.Protocol):
    """One open stream."""

    def __init__(self, client: Client, group: Group, request: bytes) -> None:
        self._client = client
        self._group = group
        self._request = request
        self._rest = b""
        self._started_s = time.monotonic()
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        if not self.head.done():
            self._group.heads_s.append(now_s - self._started_s)
            self._group.opened += 1
            self.head.set_result(None)
            if not data.startswith(b"HTTP/1.1 200 "):
                self._group.errors.append(data[:40].decode("latin-1"))
        data = self._rest + data
        if self._client.measuring:
            self._group.ages_s += [age_s(found.decode(), now_s) for found in _TOKEN.findall(data)]
        if b"[DONE]" in data or b'"error"' in data:
            self._group.errors.append("the stream ended or failed")
        self._rest = data[data.rfind(b"\n\n") + 2 :]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._client.closing:
            self._group.errors.append(f"connection lost: {type(exc).__name__}")
        if not self.head.done():
            self.head.set_result(None)


class Client:
    """Opens streams, holds them, measures when told to."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._front = Target(**plan["front"])
        self._replicas = [Target(**target) for target in plan["replicas"]]
        self._plan = plan
        self.groups = {"gateway": Group(), "direct": Group()}
        self.streams: list[Stream] = []
        self.measuring = False
        self.closing = False

    async def run(self) -> None:
        """The protocol with the parent: one line per event out, one line per order in."""
        await self._open_all()
        _say({"event": "open", "opened": {name: group.opened for name, group in self.groups.items()}})
        seconds = float(await asyncio.to_thread(sys.stdin.readline))
        cpu_s = time.process_time()
        self.measuring = True
        async with asyncio.TaskGroup() as tasks:
            if self._plan["probes"]:
                for name, target in (("gateway", self._front), ("direct", self._replicas[0])):
                    tasks.create_task(self._probe(self.groups[name], target, seconds))
            await asyncio.sleep(seconds)
        self.measuring = False
        busy = (time.process_time() - cpu_s) / seconds
        _say({"event": "measured", "busy": busy, "groups": {name: vars(group) for name, group in self.groups.items()}})
        await asyncio.to_thread(sys.stdin.readline)
        self.closing = True
        for stream in self.streams:
            if stream.transport is not None:
                stream.transport.abort()

    async def _open_all(self) -> None:
        order = itertools.chain(_interleave(self._plan["through_gateway"], self._plan["straight"]))
        direct = itertools.cycle(self._replicas)
        gate = asyncio.Semaphore(self._plan["opening_at_once"])

        async def open_one(name: str, target: Target) -> None:
            try:
                stream = await self._connect(self.groups[name], target)
                async with asyncio.timeout(60):
                    await stream.head
            except (OSError, TimeoutError) as exc:
                self.groups[name].errors.append(f"opening: {type(exc).__name__}")
            finally:
                gate.release()

        async with asyncio.TaskGroup() as tasks:
            for name in order:
                await gate.acquire()
                tasks.create_task(open_one(name, self._front if name == "gateway" else next(direct)))

    async def _connect(self, group: Group, target: Target) -> Stream:
        host, _, port = target.address.partition(":")
        stream = Stream(self, group, target.open_stream())
        self.streams.append(stream)
        await asyncio.get_running_loop().create_connection(lambda: stream, host, int(port))
        return stream

    async def _probe(self, group: Group, target: Target, seconds: float) -> None:
        host, _, port = target.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            started_s = time.monotonic()
            writer.write(target.probe())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            group.probes_s.append(time.monotonic() - started_s)
            if not head.startswith(b"HTTP/1.1 200 "):
                group.errors.append("probe: " + head[:40].decode("latin-1"))
            await asyncio.sleep(0.05)
        writer.close()


def _interleave(many: int, few: int) -> Iterator[str]:
    """`few` spread evenly among `many`."""
    for index in range(many + few):
        yield "direct" if (index + 1) * few // (many + few) > index * few // (many + few) else "gateway"


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


# --- the parent ---


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage is asked for."""

    streams: int
    replicas: int
    clients: int
    straight: int
    tokens_per_s: float
    seconds: float
    opening_at_once: int

    @property
    def interval_s(self) -> float:
        return (self.streams + self.straight) / self.tokens_per_s


def run_stage(stage: Stage) -> dict[str, Any]:
    """Start everything, open, measure, close; the findings."""
    with contextlib.ExitStack() as stack:
        replicas = start_replicas(stack, stage)
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway, front = start_gateway(stack, stage, replicas, folder / "routes.json")
        idle_mb = gateway.memory_info().rss / 2**20
        load_before = os.getloadavg()[0]
        clients = [stack.enter_context(client_process(plan)) for plan in plan_clients(stage, front, replicas)]
        started_s = time.monotonic()
        for client in clients:
            hear(client, "open")
        opening_s = time.monotonic() - started_s
        time.sleep(stage.interval_s)  # the last streams opened get their first token meanwhile
        before = gateway.cpu_times()
        results = measure(clients, stage.seconds)
        after = gateway.cpu_times()
        full_mb = gateway.memory_info().rss / 2**20
        descriptors = gateway.num_fds()
        for client in clients:
            order(client, "close")
            client.wait(60)
        left = wait_for_nothing_in_flight(front.address)
        cpu_s = after.user + after.system - before.user - before.system
        return {
            "stage": dataclasses.asdict(stage),
            "opening_s": opening_s,
            "load_average": [load_before, os.getloadavg()[0]],
            "errors": [error for result in results for group in result["groups"].values() for error in group["errors"]],
            "latency_ms": {kind: compare(results, kind) for kind in ("ages_s", "heads_s", "probes_s")},
            "gateway": {
                "idle_mb": idle_mb,
                "full_mb": full_mb,
                "kb_per_stream": (full_mb - idle_mb) * 1024 / stage.streams,
                "descriptors": descriptors,
                "cpu_share": cpu_s / stage.seconds,
                "cpu_us_per_token": cpu_s * 1e6 / max(1, count(results, "gateway", "ages_s")),
                "in_flight_after": left,
            },
            "client_cpu_share": [result["busy"] for result in results],
        }


def start_replicas(stack: contextlib.ExitStack, stage: Stage) -> list[str]:
    """Addresses of ready simulated replicas."""
    rows = 2 * (stage.streams + stage.straight) // stage.replicas + 64
    figures = {
        "answer": "clock",
        "answer-tokens": 1_000_000,
        "max-sequence-tokens": 10_000,
        "step-s": f"{stage.interval_s:.3f}",
        "per-sequence-s": 0,
        "jitter": 0.2,
        "kv-pages": rows * 8,
        "max-running-requests": rows,
        "step-tokens": rows * 16,
        "drain-timeout-s": 0,
        "log-level": "warning",
        "host": "127.0.0.1",
        "port": 0,
    }
    flags = [word for name, value in figures.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "windlass_runtime", "simulate", *flags]
    processes = [stack.enter_context(running([*command, "--seed", str(number)])) for number in range(stage.replicas)]
    addresses = [hear(process, "listening")["url"].removeprefix("http://") for process in processes]
    for process in processes:
        hear(process, "ready")
    return addresses


def start_gateway(
    stack: contextlib.ExitStack, stage: Stage, replicas: Sequence[str], table: pathlib.Path
) -> tuple[psutil.Process, Target]:
    route = Route(
        "team",
        "chat",
        "acme",
        (digest_key(KEY),),
        tuple(Replica(f"r{number}", f"http://{address}") for number, address in enumerate(replicas)),
    )
    table.write_text(RoutingTable((route,)).to_json())
    flags = ["--routes", str(table), "--port", "0", "--max-connections", str(_connections(stage.streams))]
    process = stack.enter_context(running([sys.executable, "-m", "windlass_gateway", "run", *flags]))
    address = hear(process, "listening")["url"].removeprefix("http://")
    return psutil.Process(process.pid), Target(address, "/team/chat/v1", KEY)


def _connections(streams: int) -> int:
    """Connections that the gateway must hold, so that this many streams and the probes are answered at once."""
    return math.ceil((streams + _PROBES) / Settings().running_share) + 1


def plan_clients(stage: Stage, front: Target, replicas: Sequence[str]) -> list[dict[str, Any]]:
    """Share the streams out among the client processes; the first one probes."""
    straight = [dataclasses.asdict(Target(address, "/v1")) for address in replicas]
    return [
        {
            "front": dataclasses.asdict(front),
            "replicas": straight[number % len(straight) :] + straight[: number % len(straight)],
            "through_gateway": stage.streams // stage.clients + (number < stage.streams % stage.clients),
            "straight": stage.straight // stage.clients,
            "opening_at_once": stage.opening_at_once,
            "probes": number == 0,
        }
        for number in range(stage.clients)
    ]


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def client_process(plan: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    with running([sys.executable, __file__, "--client"]) as process:
        order(process, json.dumps(plan))
        yield process


def order(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process ended before it said {event!r}: {process.args}")
    found: dict[str, Any] = json.loads(line)
    assert found["event"] == event, found
    return found


def measure(clients: Sequence[subprocess.Popen[str]], seconds: float) -> list[dict[str, Any]]:
    for client in clients:
        order(client, str(seconds))
    return [hear(client, "measured") for client in clients]


def wait_for_nothing_in_flight(address: str, within_s: float = 60.0) -> float:
    """Requests that the gateway still counts as running after every client has left; 0 is right."""
    end_s = time.monotonic() + within_s
    while True:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as reply:
            text = reply.read().decode()
        values = re.findall(r"^windlass_gateway_requests_in_flight\{.*\} (.*)$", text, re.MULTILINE)
        left = sum(float(value) for value in values)
        if left == 0 or time.monotonic() > end_s:
            return left
        time.sleep(0.5)


def count(results: Sequence[dict[str, Any]], group: str, kind: str) -> int:
    return sum(len(result["groups"][group][kind]) for result in results)


def compare(results: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Percentiles in ms through the gateway and straight, and their difference."""
    figures: dict[str, Any] = {}
    for name in ("gateway", "direct"):
        values = sorted(value * 1000 for result in results for value in result["groups"][name][kind])
        figures[name] = {"count": len(values), "p50": percentile(values, 0.50), "p95": percentile(values, 0.95)}
    figures["added"] = {rank: figures["gateway"][rank] - figures["direct"][rank] for rank in ("p50", "p95")}
    return figures


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def raise_descriptors() -> int:
    """Raise the soft limit of open files to the hard one; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def describe_machine() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "command": " ".join(["python", *sys.argv]),
    }


def show(found: dict[str, Any]) -> None:
    stage, gateway, latency = found["stage"], found["gateway"], found["latency_ms"]
    print(f"\n{stage['streams']} streams, one token per {found['interval_s']:.1f} s each, {stage['replicas']} replicas")
    print(f"  errors {len(found['errors'])} {sorted(set(found['errors']))[:4]}; opened in {found['opening_s']:.0f} s")
    for kind, words in (("ages_s", "token"), ("heads_s", "head"), ("probes_s", "probe")):
        rows = latency[kind]
        print(
            f"  {words:6} p50 / p95 ms: gateway {rows['gateway']['p50']:.1f} / {rows['gateway']['p95']:.1f}, "
            f"direct {rows['direct']['p50']:.1f} / {rows['direct']['p95']:.1f}, "
            f"added {rows['added']['p50']:.1f} / {rows['added']['p95']:.1f} "
            f"({rows['gateway']['count']} and {rows['direct']['count']} samples)"
        )
    print(
        f"  gateway {gateway['full_mb']:.0f} MB ({gateway['kb_per_stream']:.0f} KB per stream), "
        f"{gateway['descriptors']} descriptors, {gateway['cpu_us_per_token']:.0f} us CPU per token, "
        f"{gateway['cpu_share']:.0%} of a core, {gateway['in_flight_after']:.0f} in flight after; "
        f"clients {', '.join(f'{share:.0%}' for share in found['client_cpu_share'])}; "
        f"load average {found['load_average'][0]:.1f} -> {found['load_average'][1]:.1f}",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, nargs="+", default=sorted(AIMS_MS))
    parser.add_argument("--streams-per-replica", type=int, default=250, help="About the batch of a real replica.")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--straight-share", type=float, default=0.05, help="Streams beside the gateway.")
    parser.add_argument("--tokens-per-s", type=float, default=500.0, help="Over all streams.")
    parser.add_argument("--seconds", type=float, default=40.0, help="Of one measurement; at least two tokens each.")
    parser.add_argument("--opening-at-once", type=int, default=2, help="Per client process.")
    parser.add_argument("--output", type=pathlib.Path, help="Write the findings as JSON.")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.client:
        asyncio.run(Client(json.loads(sys.stdin.readline())).run())
        return 0
    limit = raise_descriptors()
    share = Settings().running_share
    most = int((limit - _KEPT_DESCRIPTORS) * share / (1 + share)) - _PROBES
    print(f"open files: {limit} per process, so at most {most} streams (two descriptors each in the gateway)")
    report: dict[str, Any] = {"machine": describe_machine(), "open_files": limit, "stages": []}
    for wanted in arguments.streams:
        streams = min(wanted, most)
        replicas = -(-streams // arguments.streams_per_replica)
        straight = max(arguments.clients * replicas, round(streams * arguments.straight_share))
        stage = Stage(
            streams, replicas, arguments.clients, straight, arguments.tokens_per_s,
            max(arguments.seconds, 2 * (streams + straight) / arguments.tokens_per_s), arguments.opening_at_once,
        )  # fmt: skip
        found = run_stage(stage) | {"wanted": wanted, "interval_s": stage.interval_s}
        report["stages"].append(found)
        show(found)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(found["errors"] or found["gateway"]["in_flight_after"] for found in report["stages"]) else 0


if __name__ == "__main__":
    sys.exit(main())
