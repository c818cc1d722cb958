"""The asyncio face of the engine: several requests, one stream of their events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

from windlass_runtime import errors
from windlass_runtime.generation import Event, GenerationRequest, Piece
from windlass_runtime.loop import Engine


class TokenStream:
    """Submits all requests on entry, or none; cancels on exit what has not ended by then.

    At most one event per generated token waits here, so the buffer is bounded by the requests' own limits.
    """

    def __init__(self, engine: Engine, requests: Sequence[GenerationRequest]) -> None:
        self._engine = engine
        self._requests = tuple(requests)
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._open = [0] * len(self._requests)
        """Choices still running, per request."""

    async def __aenter__(self) -> Self:
        try:
            for index, request in enumerate(self._requests):
                self._engine.submit(request, lambda event, index=index: self._receive(index, event))  # type: ignore[misc]
                self._open[index] = request.choices
        except errors.RuntimeFault:
            self._cancel()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the request, piece) until every choice has ended. Raises the first fault of any request."""
        while any(self._open):
            index, event = await self._events.get()
            if isinstance(event, errors.RuntimeFault):
                self._open[index] = 0
                raise event
            if event.finish is not None:
                self._open[index] -= 1
            yield index, event

    def _receive(self, index: int, event: Event) -> None:
        """Called on the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
        except RuntimeError:  # the loop is closed: the server has stopped, and nobody reads any more
            self._engine.cancel(self._requests[index].request_id)

    def _cancel(self) -> None:
        for request, open_choices in zip(self._requests, self._open, strict=True):
            if open_choices:
                self._engine.cancel(request.request_id)
