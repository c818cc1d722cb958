"""The gateway process of `windlass up`: started on a routing table, restarted on the same port if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
import signal
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Final

from windlass_operator.cluster.local_child import Child, Exit, Launch
from windlass_operator.errors import WindlassError

_log = logging.getLogger(__name__)

_RESTART_S: Final = 0.5
_STEADY_S: Final = 10.0
_LONGEST_S: Final = 15.0


class GatewayFailed(WindlassError):
    """The gateway never listened; the message holds its own words."""


@dataclasses.dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How to start it."""

    routes: pathlib.Path
    log: pathlib.Path
    host: str
    port: int
    drain_timeout_s: float
    env: Mapping[str, str]


class GatewayProcess:
    """Keeps one gateway running until stopped."""

    def __init__(self, settings: GatewaySettings, on_url: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_url = on_url
        self._port = settings.port
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        self.url = ""

    async def run(self) -> None:
        """Run until `stop`. Raises GatewayFailed when the very first start fails."""
        delay_s = _RESTART_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            self._child = Child(self._describe(), self._heard)
            ended = await self._child.run()
            if self._stopping.is_set():
                return
            if not self.url:
                raise GatewayFailed(f"the gateway did not start: {ended}")
            delay_s = _RESTART_S if time.monotonic() - started_s > _STEADY_S else min(_LONGEST_S, delay_s * 2)
            await self._pause(ended, delay_s)

    def stop(self) -> None:
        """Let running requests finish, then end."""
        self._stopping.set()
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    async def _pause(self, ended: Exit, delay_s: float) -> None:
        _log.warning("Gateway ended; starting it again. end=%s in_s=%g", ended, delay_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    def _heard(self, url: str) -> None:
        self.url = url
        self._port = urllib.parse.urlsplit(url).port or self._port
        self._on_url(url)

    def _describe(self) -> Launch:
        settings = self._settings
        command = (
            *(sys.executable, "-m", "windlass_gateway", "run", "--routes", str(settings.routes)),
            *("--host", settings.host, "--port", str(self._port)),
            *("--drain-timeout", str(settings.drain_timeout_s)),
        )
        settings.log.parent.mkdir(parents=True, exist_ok=True)
        return Launch(command, settings.env, settings.log)
