"""Read request bodies into memory, within a bound per body and one over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp.http_exceptions
from aiohttp import web

from windlass_gateway import answers
from windlass_gateway.fair_share import SharedSpace
from windlass_gateway.settings import Settings

BROKEN_BODY: Final = (
    web.RequestPayloadError,
    aiohttp.ClientPayloadError,
    aiohttp.http_exceptions.HttpProcessingError,
)
"""Broken chunks, or bytes that are not in the coding they are said to be in."""


class BodyStore:
    """Accounts for the request bodies now held. Used from one event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.space = SharedSpace(settings.max_buffered_bytes)

    @asynccontextmanager
    async def hold(self, request: web.BaseRequest, tenant: str) -> AsyncIterator[bytes]:
        """Read the body and account for it while the block runs. Raises Refused (400, 408, 413, 503)."""
        self._refuse_announced(request.content_length)
        chunks: list[bytes] = []
        try:
            await self._read(request, tenant, chunks)
            yield b"".join(chunks)
        finally:
            self.space.give_back(tenant, sum(map(len, chunks)))

    async def _read(self, request: web.BaseRequest, tenant: str, chunks: list[bytes]) -> None:
        """Append the body to `chunks`; every chunk listed there is accounted for."""
        taken = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while chunk := await request.content.readany():
                    taken += len(chunk)
                    if taken > self._settings.max_body_bytes:
                        raise answers.Refused(answers.body_too_large(self._settings.max_body_bytes))
                    if not self.space.take(tenant, len(chunk)):
                        raise answers.Refused(answers.OVERLOADED)
                    chunks.append(chunk)
        except TimeoutError as exc:
            raise answers.Refused(answers.BODY_TIMEOUT) from exc
        except BROKEN_BODY as exc:
            raise answers.Refused(answers.MALFORMED) from exc

    def _refuse_announced(self, length: int | None) -> None:
        """Refuse by Content-Length alone, before anything is read."""
        if length is not None and length > self._settings.max_body_bytes:
            raise answers.Refused(answers.body_too_large(self._settings.max_body_bytes))
