"""Run the replica processes of all services: start, probe, replace, restart, drain.

Carries out what `local_processes` decides.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import functools
import itertools
import logging
import math
import os
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from windlass_contract.endpoints import LIVE_PATH, READY_PATH, Replica
from windlass_contract.launch_spec import Device
from windlass_operator.api.v1alpha1.inference_service import Failure
from windlass_operator.cluster.local_child import Child, Exit, Launch
from windlass_operator.cluster.local_probe import probe_status
from windlass_operator.cluster.local_processes import LIVE, Crashes, Phase, Process, Wanted, plan_processes
from windlass_operator.cluster.local_workload import LocalWorkload
from windlass_operator.domain.snapshot import Key

_log = logging.getLogger(__name__)

_HOPELESS_AFTER: Final = 2
"""Starts in a row that ended by the replica's own decision before it ever was ready."""


@dataclasses.dataclass(frozen=True, slots=True)
class LocalSettings:
    """How replicas run on this machine."""

    state_dir: pathlib.Path
    command: tuple[str, ...]
    """Start of the command line; `serve --launch-spec FILE` follows."""
    env: Mapping[str, str]
    """Environment of every replica; a pod template's variables are added."""
    cores: int = 1
    gpus: tuple[str, ...] = ()
    """Devices to hand out, as CUDA_VISIBLE_DEVICES names them."""
    probe_s: float = 0.2
    steady_probe_s: float = 1.0
    probe_timeout_s: float = 2.0
    deaf_after_s: float = 30.0
    """A replica whose liveness probe has failed for this long is killed and replaced."""
    notice_s: float = 0.3
    """Time between leaving the routing table and SIGTERM: three looks of the gateway at its table."""


@dataclasses.dataclass(slots=True)
class _Running:
    """One process, as the supervisor books it."""

    name: str
    revision: str
    phase: Phase
    since_s: float
    child: Child
    task: asyncio.Task[None] | None = None
    gpus: tuple[str, ...] = ()
    url: str = ""
    ever_ready: bool = False
    told: bool = False
    """Whether its end was asked for, so that it is no crash."""


@dataclasses.dataclass(slots=True)
class _Service:
    workload: LocalWorkload
    running: dict[str, _Running] = dataclasses.field(default_factory=dict)
    crashes: Crashes = dataclasses.field(default_factory=Crashes)
    failed_starts: int = 0
    last_failure: Failure | None = None
    waiting_for_gpu: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica, for tables and routing."""

    name: str
    phase: Phase
    current: bool
    """Whether it is of the wanted revision."""
    url: str
    pid: int


@dataclasses.dataclass(frozen=True, slots=True)
class ServiceView:
    """One service's replicas now."""

    wanted: Wanted
    replicas: tuple[ReplicaView, ...]
    last_failure: Failure | None
    hopeless: bool
    """Whether the newest revision cannot start: it ended by itself, more than once, and never was ready."""
    waiting_for_gpu: bool
    gpu_class: str
    devices: int = 1
    """GPUs per replica, where it runs on GPUs."""

    @property
    def routable(self) -> tuple[Replica, ...]:
        """Replicas to list in the routing table."""
        return tuple(Replica(item.name, item.url) for item in self.replicas if item.phase is Phase.READY)


class Replicas:
    """Supervises processes. `run` does the work; everything else only sets or reads. One event loop, main thread.

    The main thread matters: the kernel ends a tethered child when the *thread* that started it ends.
    """

    def __init__(self, settings: LocalSettings, on_change: Callable[[Key], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._services: dict[Key, _Service] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    def want(self, key: Key, workload: LocalWorkload | None) -> None:
        """Set what should run for a service; None drains everything."""
        service = self._services.get(key)
        if service is None:
            if workload is None:
                return
            service = self._services[key] = _Service(workload)
        elif workload is None:
            service.workload = dataclasses.replace(
                service.workload, wanted=dataclasses.replace(service.workload.wanted, replicas=0)
            )
        else:
            self._adopt(service, workload)
        self._wake.set()

    def view(self, key: Key) -> ServiceView | None:
        """Return the replicas of a service; None when it has none and wants none."""
        service = self._services.get(key)
        if service is None:
            return None
        wanted = service.workload.wanted
        replicas = tuple(
            ReplicaView(item.name, item.phase, item.revision == wanted.revision, item.url, item.child.pid)
            for item in service.running.values()
        )
        hopeless = service.failed_starts >= _HOPELESS_AFTER
        return ServiceView(
            wanted,
            replicas,
            service.last_failure,
            hopeless,
            service.waiting_for_gpu,
            service.workload.gpu_class,
            service.workload.launch.device_count,
        )

    async def run(self) -> None:
        """Supervise until `drain` has emptied the house. Cancelled: kills every process."""
        async with asyncio.TaskGroup() as group:
            while not (self._stopping and not self._services):
                self._wake.clear()
                wake_s = min((self._step(key, group) for key in list(self._services)), default=math.inf)
                await self._sleep(wake_s)

    def drain(self) -> None:
        """Let every replica finish and leave; `run` returns afterwards. Nothing starts any more."""
        self._stopping = True
        for key in list(self._services):
            self.want(key, None)
        self._wake.set()

    def _adopt(self, service: _Service, workload: LocalWorkload) -> None:
        if workload.wanted.revision != service.workload.wanted.revision:
            service.crashes, service.failed_starts, service.last_failure = Crashes(), 0, None
        service.workload = workload

    async def _sleep(self, until_s: float) -> None:
        """Wait for a wake-up call, but not longer than until the given time."""
        left_s = None if math.isinf(until_s) else max(0.0, until_s - time.monotonic())
        try:
            async with asyncio.timeout(left_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _step(self, key: Key, group: asyncio.TaskGroup) -> float:
        """Do what is due for one service; return when to look again."""
        service, now_s = self._services[key], time.monotonic()
        wanted = service.workload.wanted
        processes = [Process(item.name, item.revision, item.phase, item.since_s) for item in service.running.values()]
        plan = plan_processes(wanted, processes, service.crashes, now_s, self._settings.notice_s)
        for name in plan.leave:
            self._enter(key, service.running[name], Phase.LEAVING)
        for name in plan.terminate:
            item = service.running[name]
            item.told = True
            self._enter(key, item, Phase.DRAINING)
            item.child.signal(signal.SIGTERM)
        for name in plan.kill:
            _log.warning(
                "Replica did not end in time; killing it. replica=%s phase=%s", name, service.running[name].phase
            )
            service.running[name].child.signal(signal.SIGKILL)
            service.running[name].since_s = now_s
        for _ in range(plan.start):
            self._start(key, service, group)
        if not wanted.replicas and not service.running:
            del self._services[key]
            self._on_change(key)
            self._wake.set()
        changed = plan.leave or plan.terminate
        return now_s if changed else (plan.wake_s if plan.wake_s is not None else math.inf)

    def _enter(self, key: Key, item: _Running, phase: Phase) -> None:
        item.phase, item.since_s = phase, time.monotonic()
        _log.info("Replica is %s. replica=%s pid=%d", phase.value.lower(), item.name, item.child.pid)
        self._on_change(key)
        self._wake.set()

    def _start(self, key: Key, service: _Service, group: asyncio.TaskGroup) -> None:
        launch, wanted = service.workload.launch, service.workload.wanted
        gpus = self._free_gpus(launch.device_count) if launch.device is Device.CUDA else ()
        if service.waiting_for_gpu != (gpus is None):
            service.waiting_for_gpu = gpus is None
            self._on_change(key)
        if gpus is None:
            return
        name = self._choose_name(key, service)
        child = Child(self._describe(key, name, service.workload, gpus), functools.partial(self._heard, key, name))
        item = _Running(name, wanted.revision, Phase.STARTING, time.monotonic(), child, gpus=gpus)
        service.running[name] = item
        item.task = group.create_task(self._live(key, service, item))
        self._on_change(key)

    @staticmethod
    def _choose_name(key: Key, service: _Service) -> str:
        """Take the lowest free number: a replica that crashes again and again fills one log file and not many."""
        stem = f"{key.name.replace('/', '-')}-{service.workload.wanted.revision}"
        return next(name for number in itertools.count(1) if (name := f"{stem}-{number}") not in service.running)

    def _describe(self, key: Key, name: str, workload: LocalWorkload, gpus: tuple[str, ...]) -> Launch:
        folder = self._settings.state_dir
        file = folder / "launch" / f"{key.namespace}.{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(workload.launch.to_json())
        log = folder / "logs" / f"{key.namespace}.{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {**self._settings.env, **workload.env}
        # Replicas that each take every core slow one another down, so they share them evenly; a user's own
        # value stands.
        env.setdefault("OMP_NUM_THREADS", str(max(1, self._settings.cores // self._wanted_total())))
        if workload.launch.device is Device.CUDA:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return Launch((*self._settings.command, "serve", "--launch-spec", str(file)), env, log)

    def _wanted_total(self) -> int:
        return max(1, sum(service.workload.wanted.replicas for service in self._services.values()))

    def _free_gpus(self, count: int) -> tuple[str, ...] | None:
        running = (item for service in self._services.values() for item in service.running.values())
        used = {gpu for item in running for gpu in item.gpus}
        free = [gpu for gpu in self._settings.gpus if gpu not in used]
        return tuple(free[:count]) if len(free) >= count else None

    def _heard(self, key: Key, name: str, url: str) -> None:
        service = self._services.get(key)
        if service is not None and name in service.running:
            service.running[name].url = url
            self._on_change(key)

    async def _live(self, key: Key, service: _Service, item: _Running) -> None:
        """The life of one replica process, from start to the books closed."""
        probing = asyncio.create_task(self._probe(key, service, item))
        try:
            ended = await item.child.run()
        except OSError as exc:
            ended = Exit(127, f"cannot start: {exc}")
        finally:
            probing.cancel()
            await asyncio.wait([probing])
            service.running.pop(item.name, None)
            _remove_file(self._settings.state_dir / "launch" / f"{key.namespace}.{item.name}.json")
        self._close(key, service, item, ended)

    def _close(self, key: Key, service: _Service, item: _Running, ended: Exit) -> None:
        if item.told:
            _log.info("Replica ended as asked. replica=%s end=%s", item.name, ended)
        else:
            _log.warning("Replica ended by itself. replica=%s end=%s", item.name, ended)
            self._book_crash(service, item, ended)
        self._on_change(key)
        self._wake.set()

    def _book_crash(self, service: _Service, item: _Running, ended: Exit) -> None:
        if item.revision != service.workload.wanted.revision:
            return
        now_s = time.monotonic()
        ready_for_s = now_s - item.since_s if item.phase is Phase.READY else 0.0
        service.crashes = service.crashes.after(now_s, ready_for_s)
        own_decision = ended.code > 0 and not item.ever_ready
        service.failed_starts = service.failed_starts + 1 if own_decision else 0
        service.last_failure = Failure(
            reason=ended.reason,
            message=(ended.last_words if ended.code > 0 else "") or str(ended),
            pod=item.name,
            exit_code=ended.code,
            time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    async def _probe(self, key: Key, service: _Service, item: _Running) -> None:
        """Keep the phase in step with the readiness probe; end a replica that answers nothing at all."""
        heard_s = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.steady_probe_s if item.phase is Phase.READY else self._settings.probe_s)
            if not item.url:
                heard_s = time.monotonic()
                continue
            status = await probe_status(item.url, READY_PATH, self._settings.probe_timeout_s)
            if status or await probe_status(item.url, LIVE_PATH, self._settings.probe_timeout_s):
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > self._settings.deaf_after_s:
                _log.warning("Replica answers no probe; killing it. replica=%s", item.name)
                item.child.signal(signal.SIGKILL)
            if item.phase in LIVE:
                self._judge(key, service, item, ready=status == 200)

    def _judge(self, key: Key, service: _Service, item: _Running, *, ready: bool) -> None:
        phase = Phase.READY if ready else Phase.STARTING
        if phase is item.phase:
            return
        if ready:
            item.ever_ready = True
            service.failed_starts = 0
        self._enter(key, item, phase)


def _remove_file(path: pathlib.Path) -> None:
    path.unlink(missing_ok=True)


def visible_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
