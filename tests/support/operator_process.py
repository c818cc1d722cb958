"""The operator as users run it, one process against a control plane, for end-to-end tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support.control_plane import free_ports
from support.patience import stretched

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class OperatorProcess:
    """`windlass operator run`, started and stopped by process id."""

    def __init__(
        self,
        kubeconfig: Path,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "windlass_operator"),
    ) -> None:
        self._kubeconfig = kubeconfig
        self.log = log
        self._environment = dict(environment or {})
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.probe_port = free_ports(1)[0]

    @property
    def pid(self) -> int:
        """Process id; valid while it runs."""
        assert self._process is not None, "the operator is not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def launch(self, environment: Mapping[str, str] | None = None) -> None:
        """Start without waiting; `environment` holds for this start only."""
        flags = ["--kubeconfig", str(self._kubeconfig), "--probe-port", str(self.probe_port)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WINDLASS_")}
        variables = {**inherited, **self._environment, **(environment or {})}
        with self.log.open("ab") as log:
            command = [*self._command, "operator", "run", *flags]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start and wait until the caches are filled. Raises AssertionError with the log."""
        self.launch(environment)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the readiness probe answers. Raises AssertionError with the log."""
        assert self._process is not None
        deadline = time.monotonic() + stretched(START_TIMEOUT_S)
        while not self.probe("readyz"):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"the operator is not ready; its log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> int:
        """SIGTERM; returns the exit code. A process that is gone already gives its code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL: what a lost node looks like."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def pause(self) -> None:
        """SIGSTOP: alive for the kernel, dead for everybody else."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def probe(self, name: str) -> bool:
        """Whether a probe (`healthz`, `readyz`) answers 200."""
        with contextlib.suppress(OSError, urllib.error.URLError):
            return bool(self._fetch(name))
        return False

    def leads(self) -> bool:
        """Whether this process holds the lease, by its own metrics."""
        return self.metric("windlass_operator_is_leader") == 1.0

    def metric(self, name: str) -> float:
        """Sum of all series of a metric; 0.0 while there is none or the process does not answer."""
        try:
            text = self._fetch("metrics").decode()
        except (OSError, urllib.error.URLError):
            return 0.0
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def _fetch(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}/{path}", timeout=2) as answer:
            body: bytes = answer.read()
            return body


@contextlib.contextmanager
def running_operator(
    kubeconfig: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[OperatorProcess]:
    """An operator that is gone when the block ends."""
    operator = OperatorProcess(kubeconfig, log, environment=environment)
    try:
        operator.start()
        yield operator
    finally:
        if operator.running:
            operator.stop()  # releases the lease, so that the next one need not wait for it to run out
