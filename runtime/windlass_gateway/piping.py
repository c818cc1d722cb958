"""Hand chunks of an answer from a replica's connection to a client's as they are, without a task, a parser and a timer
for each of them. Most of what a token costs a gateway lies there.

A pipe is open between two chunks only. What is no plain chunk (the end above all) goes the usual way, through the HTTP
client's parser, which never learns of the chunks that were piped and need not. A client that reads too slowly closes
the pipe as well: the usual way has back-pressure and a deadline.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp.client_proto import ResponseHandler

from windlass_gateway.chunks import BrokenChunkError, ChunkScanner
from windlass_gateway.meter import TokenMeter

_MOST_UNSENT_BYTES: Final = 2**16
_HEAD_END: Final = b"\r\n\r\n"
_LARGEST_HEAD: Final = 2**16
_TAIL_BYTES: Final = 4


class Pipe:
    """One answer on its way to a client, by either way."""

    def __init__(self, transport: asyncio.Transport, meter: TokenMeter) -> None:
        self._transport = transport
        self._meter = meter
        self.tail = b"\n\n"
        """Last bytes of what was sent; empty where they are not known."""
        self.whole = True
        """Whether what was sent ends with a chunk, so that another one may follow."""

    def note(self, piece: bytes) -> None:
        """A piece goes the usual way, as a chunk of its own."""
        self._meter.note(piece)
        self.tail = (self.tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def send(self, chunks: bytes, scanner: ChunkScanner) -> None:
        """Send chunks on; `scanner` stands behind them."""
        self._transport.write(chunks)
        self._meter.note(chunks)
        self.whole = scanner.at_boundary
        known = self.whole and scanner.last_size >= _TAIL_BYTES and len(chunks) >= _TAIL_BYTES + 2
        self.tail = chunks[-_TAIL_BYTES - 2 : -2] if known else b""

    @property
    def flows(self) -> bool:
        """Whether the client takes what is sent."""
        return self._transport.get_write_buffer_size() <= _MOST_UNSENT_BYTES


class ReplicaConnection(ResponseHandler):
    """A connection to a replica. It follows the chunks of every answer, so that a pipe can be opened between two."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._clock = loop
        self._head: bytes | None = None
        """The end of the head of an answer while it arrives; None when it is there, or nobody waits for one."""
        self._scanner: ChunkScanner | None = None
        """None where chunks cannot be followed any more."""
        self._pipe: Pipe | None = None
        self._piped_at_s = 0.0

    def set_response_params(self, **params: object) -> None:
        """A request is sent: another answer begins."""
        self._head, self._scanner, self._pipe = b"", None, None
        super().set_response_params(**params)  # type: ignore[arg-type]

    def open_pipe(self, pipe: Pipe) -> None:
        """Send chunks that come from now on through the pipe, if one ends here. Whoever calls has read all before."""
        if self._scanner is not None and self._scanner.at_boundary and pipe.flows:
            self._pipe = pipe

    def close_pipe(self, pipe: Pipe) -> None:
        """Send nothing through this pipe any more: its answer ends, whole or not. Another one may have the connection
        by now.
        """
        if self._pipe is pipe:
            self._pipe = self._scanner = None

    def data_received(self, data: bytes) -> None:
        """Take the next bytes of the replica."""
        if self._pipe is not None and self._scanner is not None:
            data = self._send(data, self._pipe, self._scanner)
            if not data:
                return
            self._scanner = None
        elif self._head is not None or self._scanner is not None:
            self._follow(data)
        super().data_received(data)

    def _send(self, data: bytes, pipe: Pipe, scanner: ChunkScanner) -> bytes:
        """Pipe what can be piped; return what the parser has to see."""
        try:
            end = scanner.follow(data)
        except BrokenChunkError:
            self._pipe = self._scanner = None
            pipe.whole = False
            if self.transport is not None:
                self.transport.abort()
            return b""
        if end:
            self._piped_at_s = self._clock.time()
            pipe.send(data[:end], scanner)
        if end < len(data) or (scanner.at_boundary and not pipe.flows):
            self._pipe = None
        return data[end:]

    def _follow(self, data: bytes) -> None:
        """Keep in step with the parser."""
        if self._head is not None:
            data = self._find_body(self._head + data)
        if data and self._scanner is not None:
            try:
                followed = self._scanner.follow(data)
            except BrokenChunkError:
                followed = -1  # it is no chunked body
            if followed < len(data):
                self._scanner = None

    def _find_body(self, head: bytes) -> bytes:
        """Return what follows the head, empty while it is not there. Interim answers (1xx) come before the real one."""
        while True:
            end = head.find(_HEAD_END)
            if end < 0:
                self._head = head if len(head) <= _LARGEST_HEAD else None
                return b""
            interim = head[9:10] == b"1"
            head, found = head[end + len(_HEAD_END) :], not interim
            if found:
                self._head, self._scanner = None, ChunkScanner()
                return head

    def _on_read_timeout(self) -> None:
        """Piped chunks set no timer; they are looked for when the one before them is over."""
        limit_s, silent_s = self._read_timeout, self._clock.time() - self._piped_at_s
        if limit_s is not None and silent_s < limit_s:
            self._read_timeout_handle = self._clock.call_later(limit_s - silent_s, self._on_read_timeout)
        else:
            super()._on_read_timeout()
