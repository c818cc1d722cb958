"""Keep the gateway's routing table in step with the picture of the cluster: one table for all services, so one task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_routes import RoutesSecret
from windlass_operator.domain.routes import plan_routes
from windlass_operator.domain.snapshot import Snapshot
from windlass_operator.reconcile.keyed_queue import Backoff

log = logging.getLogger(__name__)

GATHER_S: Final = 0.2
"""Changes within this time become one write; a table of many services weighs hundreds of kilobytes."""
AFTER_FAILURE: Final = Backoff(first_s=1.0, longest_s=60.0)


class RoutePublisher:
    """Run `run` as one task and call `touch` when the picture changed."""

    def __init__(
        self,
        secret: RoutesSecret,
        picture: Callable[[], Snapshot],
        *,
        may_work: Callable[[], Awaitable[None]],
        random: Callable[[], float],
        look_again_s: float,
        count_write: Callable[[str, str], None],
    ) -> None:
        self._secret = secret
        self._picture = picture
        self._may_work = may_work
        self._random = random
        self._look_again_s = look_again_s
        self._count_write = count_write
        self._changed = asyncio.Event()
        self._published: Snapshot | None = None

    def touch(self) -> None:
        """Something changed that routes may depend on."""
        self._changed.set()

    def start_over(self) -> None:
        """This process has just become the leader: what another one wrote is not known."""
        self._secret.forget()
        self._published = None
        self.touch()

    async def run(self) -> None:
        """Publish for ever, while leading."""
        failures = 0
        while True:
            await self._may_work()
            try:
                await self._publish()
                failures, wait_s = 0, self._look_again_s
            except errors.WindlassError as exc:
                failures += 1
                wait_s = AFTER_FAILURE.delay_s(failures, self._random())
                log.warning("Routing table not published. in_s=%.1f error=%s", wait_s, exc)
            await self._wait(wait_s, failures)

    async def _publish(self) -> None:
        self._changed.clear()
        picture = self._picture()
        if picture is self._published:
            return
        table = plan_routes(picture)
        if await self._secret.publish(table):
            self._count_write("Secret", "apply")
            log.info("Routing table published. routes=%d", len(table.routes))
        self._published = picture

    async def _wait(self, longest_s: float, failures: int) -> None:
        """Wait for a change, or for the time given; after a failure for that time alone."""
        if failures:
            await asyncio.sleep(longest_s)
            return
        try:
            async with asyncio.timeout(longest_s):
                await self._changed.wait()
        except TimeoutError:
            self._secret.forget()  # somebody may have edited it
            self._published = None
            return
        await asyncio.sleep(GATHER_S)
