"""`windlass power-agent run` as a process, over a library without GPUs; started and stopped by process id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from support.control_plane import free_ports
from support.fake_nvml import VARIABLE, FakeNvml

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
INTERVAL_S = 1.0


class PowerAgentProcess:
    """One agent. Use as a context manager: the end of the block kills it if it still runs."""

    def __init__(
        self, driver: FakeNvml, library: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self.probe_port = free_ports(1)[0]
        given = ["--probe-port", str(self.probe_port), "--interval", f"{INTERVAL_S:g}", *flags]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "windlass_operator", "power-agent", "run", *given],
                stdout=file,
                stderr=file,
                env={**agent_environment(driver, library), **(environment or {})},
            )

    def __enter__(self) -> PowerAgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def wait_until_ready(self) -> None:
        """Return once the agent has looked once."""
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            assert self._process.poll() is None, f"the agent ended: {self.log.read_text()}"
            if self._get("/readyz") is not None:
                return
            time.sleep(0.1)
        raise AssertionError(f"the agent was not ready within {START_TIMEOUT_S:g} s: {self.log.read_text()}")

    def samples(self) -> dict[tuple[str, ...], float]:
        """Its metrics as `(name, label value, ...)`, in the order of the labels' names."""
        page = self._get("/metrics")
        assert page is not None, self.log.read_text()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def crash(self) -> None:
        """Kill it, as the kernel would."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def _get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            return None


def agent_environment(driver: FakeNvml, library: Path) -> dict[str, str]:
    """Environment in which `libnvidia-ml.so.1` is the one without GPUs."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(library),
        VARIABLE: str(driver.path),
        "WINDLASS_POWER_PROBE_HOST": "127.0.0.1",
    }
