"""One run of the main job: bring up the quickstart fleet on this machine, ask it one question, print what that took.

Run by `make demo`. Standard library only, as any client could be. Leaves the figures in build/demo.json; the exit code
is 0 only if all went well.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import pathlib
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUESTION = "Tell me about security groups."


class DemoFailed(Exception):
    """The run ends here; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one run measured."""

    objects_rendered: int
    replicas: str
    seconds_to_ready: float
    time_to_first_token_s: float
    tokens: int
    tokens_per_second: float
    """Tokens after the first, divided by the time they took."""
    seconds_total: float
    machine: str
    python: str


class Fleet:
    """A running `windlass up`, read through its JSON events."""

    def __init__(self, files: pathlib.Path, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        command = [sys.executable, "-m", "windlass_operator", "up", str(files), "--once", "-o", "json", "--port", "0"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def wait_ready(self) -> dict[str, Any]:
        """Return the `ready` event. Raises DemoFailed with the fleet's own words."""
        while True:
            try:
                event = self._events.get(timeout=max(0.0, self._deadline_s - time.monotonic()))
            except queue.Empty:
                raise DemoFailed("the fleet was not ready in time") from None
            if event is None:
                raise DemoFailed(f"windlass up ended early with exit code {self._process.wait()}")
            if event["event"] == "object":
                print(f"  {event['object']}: {event['phase']} {event.get('ready', '')}".rstrip())
            if event["event"] == "failed":
                raise DemoFailed(event["reason"])
            if event["event"] == "ready":
                return event

    def stop(self) -> int:
        """Drain the fleet; return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._events.put(json.loads(line))
        self._events.put(None)


@contextlib.contextmanager
def running_fleet(files: pathlib.Path, deadline_s: float) -> Iterator[Fleet]:
    """Start a fleet, and stop it whatever happens. A fleet that does not end cleanly is a failure too."""
    fleet = Fleet(files, deadline_s)
    try:
        yield fleet
    except BaseException:
        fleet.stop()
        raise
    code = fleet.stop()
    if code != 0:
        raise DemoFailed(f"windlass up did not drain cleanly: exit code {code}")


def stream_answer(url: str, key: str, question: str, max_tokens: int, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Send one chat request and yield its chunks as they arrive."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    body = {
        "model": "storyteller",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "stream": True,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"{address.path}/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise DemoFailed(f"the gateway answered {response.status}: {response.read().decode(errors='replace')}")
        for line in response:
            field, _, data = line.decode().strip().partition(":")
            if field != "data":  # a blank line between events, or a comment, which any server may send
                continue
            if data.strip() == "[DONE]":
                return
            yield parse_chunk(data)
        raise DemoFailed("the stream ended without [DONE]")
    finally:
        connection.close()


def parse_chunk(data: str) -> dict[str, Any]:
    """Read one event; an error event ends the demo."""
    chunk: dict[str, Any] = json.loads(data)
    if "error" in chunk:
        raise DemoFailed(f"the stream broke: {chunk['error']['message']}")
    return chunk


def ask(url: str, key: str, question: str, max_tokens: int, timeout_s: float) -> tuple[int, float, float]:
    """Print an answer while it streams; return tokens, seconds to the first and seconds from first to last."""
    print(f"\n> {question}\n", flush=True)
    sent_s = time.monotonic()
    first_s = last_s = 0.0
    tokens = 0
    for chunk in stream_answer(url, key, question, max_tokens, timeout_s):
        text = "".join(choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", ()))
        if text:
            last_s = time.monotonic()
            first_s = first_s or last_s
            print(text, end="", flush=True)
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    if not tokens:
        raise DemoFailed("the answer held no token")
    print("\n")
    return tokens, first_s - sent_s, last_s - first_s


def run(files: pathlib.Path, question: str, max_tokens: int, timeout_s: float) -> Figures:
    """The whole demo. Raises DemoFailed."""
    started_s = time.monotonic()
    print(f"windlass up {files.relative_to(ROOT) if files.is_relative_to(ROOT) else files}")
    with running_fleet(files, started_s + timeout_s) as fleet:
        ready = fleet.wait_ready()
        service = ready["services"][0]
        key = json.loads(pathlib.Path(ready["keyFile"]).read_text())[service["owner"]]
        tokens, first_s, rest_s = ask(service["url"], key, question, max_tokens, timeout_s)
    return Figures(
        objects_rendered=ready["objects"],
        replicas=service["ready"],
        seconds_to_ready=ready["seconds"],
        time_to_first_token_s=round(first_s, 4),
        tokens=tokens,
        tokens_per_second=round((tokens - 1) / rest_s, 1) if rest_s > 0 else 0.0,
        seconds_total=round(time.monotonic() - started_s, 2),
        machine=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
    )


def print_summary(figures: Figures, file: pathlib.Path) -> None:
    """Print the figures for people."""
    print(f"objects rendered      {figures.objects_rendered}")
    print(f"replicas ready        {figures.replicas}")
    print(f"ready after           {figures.seconds_to_ready:.1f} s")
    print(f"time to first token   {figures.time_to_first_token_s * 1000:.0f} ms")
    print(f"tokens per second     {figures.tokens_per_second:.0f} (one stream, {figures.tokens} tokens)")
    print(f"whole run             {figures.seconds_total:.1f} s, written to {file.relative_to(ROOT)}")


def main() -> int:
    """Parse the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=pathlib.Path, default=ROOT / "examples" / "quickstart")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for start and answer together")
    options = parser.parse_args()
    try:
        figures = run(options.files, options.question, options.max_tokens, options.timeout)
    except (DemoFailed, OSError, http.client.HTTPException) as exc:
        print(f"demo failed: {exc}", file=sys.stderr)
        return 1
    file = ROOT / "build" / "demo.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(figures), indent=2) + "\n")
    print_summary(figures, file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
