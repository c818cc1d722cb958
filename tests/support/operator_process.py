"""The operator as users run it, one process against a control plane, for end-to-end tests."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from support.control_plane import ControlPlane, free_ports


class OperatorProcess:
    """`windlass operator run`, started and stopped by process id."""

    def __init__(self, plane: ControlPlane, log: Path) -> None:
        self._plane = plane
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.probe_port = free_ports(1)[0]

    def start(self) -> None:
        """Start and wait until the caches are filled. Raises AssertionError with the log."""
        flags = ["--kubeconfig", str(self._plane.kubeconfig), "--probe-port", str(self.probe_port)]
        command = [sys.executable, "-m", "windlass_operator", "operator", "run", *flags]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"the operator is not ready; its log:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> int:
        """SIGTERM; returns the exit code. A process that is gone already gives its code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)

    def kill(self) -> None:
        """SIGKILL: what a lost node looks like."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def _is_ready(self) -> bool:
        url = f"http://127.0.0.1:{self.probe_port}/readyz"
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2):
            return True
        return False


@contextlib.contextmanager
def running_operator(plane: ControlPlane, log: Path) -> Iterator[OperatorProcess]:
    """An operator that is gone when the block ends."""
    operator = OperatorProcess(plane, log)
    operator.start()
    try:
        yield operator
    finally:
        operator.stop()  # releases the lease, so that the next one need not wait for it to run out
