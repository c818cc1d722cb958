"""One reading for everybody who asks within a while: single flight, a cache, and patience after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from windlass_operator import errors

log = logging.getLogger(__name__)

T = TypeVar("T")
Observe = Callable[[str, bool, float], None]
"""Takes the name of what was read, whether that worked, and how many seconds it took."""


class SharedRead(Generic[T]):
    """Calls `read` at most once per interval, however many ask; a failure keeps the last value until it ages.

    `read` bounds its own time and raises WindlassError when it fails. Close it to cancel a reading that runs.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Awaitable[T]],
        initial: T,
        *,
        interval_s: float,
        clock: Callable[[], float],
        observe: Observe = lambda *_: None,
    ) -> None:
        self._name, self._read, self._value = name, read, initial
        self._interval_s, self._clock, self._observe = interval_s, clock, observe
        self._started = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self.problem = ""
        """Why the last reading failed; empty after one that worked."""

    async def get(self) -> T:
        """Return the newest value there is; waits where a reading is due or runs."""
        if self._task is None and self._clock() - self._started >= self._interval_s:
            self._started = self._clock()
            self._task = asyncio.create_task(self._refresh(), name=f"read {self._name}")
        if self._task is not None:
            # Whoever asks may leave; the reading goes on for the others.
            await asyncio.shield(self._task)
        return self._value

    async def close(self) -> None:
        """Cancel a running reading and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _refresh(self) -> None:
        try:
            self._value = await self._read()
        except errors.WindlassError as exc:
            if not self.problem:
                log.warning("Reading failed; values age until it works again. what=%s error=%s", self._name, exc)
            self.problem = str(exc)
        else:
            if self.problem:
                log.info("Reading works again. what=%s", self._name)
            self.problem = ""
        finally:
            self._task = None
            self._observe(self._name, not self.problem, self._clock() - self._started)
