"""Ask a replica on this machine for the status of one path. A bare HTTP/1.1 exchange: the answer's first line is all
we read.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from typing import Final

NO_ANSWER: Final = 0


async def probe_status(url: str, path: str, timeout_s: float) -> int:
    """Return the HTTP status, or NO_ANSWER when none came in time."""
    address = urllib.parse.urlsplit(url)
    request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(address.hostname or "", address.port or 80, request.encode())
    except (OSError, TimeoutError, ValueError, IndexError):
        return NO_ANSWER


async def _exchange(host: str, port: int, request: bytes) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        status_line = await reader.readline()
        return int(status_line.split()[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
