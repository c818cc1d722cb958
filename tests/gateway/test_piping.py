"""Chunks go from a replica's connection to a client's as they came, and everything else goes the usual way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import pytest

from windlass_gateway.meter import TokenMeter
from windlass_gateway.piping import Pipe, ReplicaConnection
from windlass_gateway.settings import Settings
from windlass_gateway.upstream import build_session

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Client(asyncio.Transport):
    """The client's connection: remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.unsent = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent


@asynccontextmanager
async def answering(*scripts: Script, silence_s: float = 5.0) -> AsyncIterator[Callable[[], Awaitable[Answer]]]:
    """A server that answers each request by the next script, and a way to ask it on kept connections."""
    left, serving, answers = list(scripts), set[asyncio.Task[None]](), list[Answer]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await left.pop(0)(writer)
        writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with build_session(Settings()) as session:

        async def ask() -> Answer:
            timeout = aiohttp.ClientTimeout(sock_read=silence_s)
            context = SimpleNamespace(reused=False)
            response = await session.get(f"http://127.0.0.1:{port}/", timeout=timeout, trace_request_ctx=context)
            answers.append(Answer(response))
            return answers[-1]

        try:
            yield ask
        finally:
            for answer in answers:
                answer.response.close()
            for task in serving:
                task.cancel()
            await asyncio.wait(serving)
    server.close()
    await server.wait_closed()


class Answer:
    """An answer whose first piece is read, with a pipe that is open from there on."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.client = Client()
        self.meter = TokenMeter()
        self.pipe = Pipe(self.client, self.meter)
        assert response.connection is not None
        protocol = response.connection.protocol
        assert isinstance(protocol, ReplicaConnection)
        self.connection = protocol

    async def open(self) -> bytes:
        piece = await self.response.content.readany()
        self.connection.open_pipe(self.pipe)
        return piece

    async def reached(self, sent: bytes) -> None:
        while self.client.sent != sent:
            await asyncio.sleep(0.001)


def sending(*pieces: bytes, pause_s: float = 0.02) -> Script:
    async def run(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return run


async def test_chunks_come_out_as_they_went_in_and_the_end_is_the_parsers() -> None:
    first, *others = (chunk(b"data: %d\n\n" % number) for number in range(5))
    async with answering(sending(HEAD + first, *others, END)) as ask:
        answer = await ask()

        assert await answer.open() == b"data: 0\n\n"
        rest = await answer.response.content.readany()

    assert rest == b""
    assert answer.client.sent == b"".join(others)
    assert (answer.pipe.whole, answer.pipe.tail) == (True, b" 4\n\n")


async def test_the_connection_serves_the_next_answer_through_a_pipe_of_its_own() -> None:
    script = sending(HEAD + chunk(b"first"), chunk(b"second"), END)
    async with answering(script, script) as ask:
        one = await ask()
        await one.open()
        await one.response.content.readany()
        two = await ask()
        await two.open()
        await two.response.content.readany()

    assert one.connection is two.connection
    assert one.client.sent == two.client.sent == chunk(b"second")


async def test_a_pipe_opens_between_two_chunks_only() -> None:
    """Half a chunk is with the parser, so its other half must go there too."""
    whole = chunk(b"second")
    async with answering(sending(HEAD + chunk(b"first") + whole[:5], whole[5:], chunk(b"third"), END)) as ask:
        answer = await ask()
        pieces = [await answer.open()]
        while piece := await answer.response.content.readany():
            pieces.append(piece)
            answer.connection.open_pipe(answer.pipe)

    assert b"".join(pieces) + b"third" == b"firstsecondthird"
    assert answer.client.sent == chunk(b"third")


async def test_a_client_that_does_not_read_closes_the_pipe_until_it_does() -> None:
    async with answering(sending(HEAD + chunk(b"first"), chunk(b"second"), chunk(b"third"), END)) as ask:
        answer = await ask()
        await answer.open()
        answer.client.unsent = 2**20

        third = await answer.response.content.readany()

    assert answer.client.sent == chunk(b"second"), "the one that filled it"
    assert third == b"third"


async def test_an_answer_with_a_length_is_never_piped() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n"
    async with answering(sending(head + b"5\r\nhello", b"\r\n5\r\n\r\n")) as ask:
        answer = await ask()
        first = await answer.open()
        second = await answer.response.content.readany()

    assert first + second == b"5\r\nhello\r\n5\r\n\r\n"[:16]
    assert answer.client.sent == b""


async def test_a_broken_chunk_ends_the_answer_as_broken() -> None:
    async with answering(sending(HEAD + chunk(b"first"), b"5\r\nhello, this is too long\r\n")) as ask:
        answer = await ask()
        await answer.open()

        with pytest.raises(aiohttp.ClientError):
            await answer.response.content.readany()

    assert answer.client.sent == b""
    assert not answer.pipe.whole


async def test_a_break_within_a_chunk_shows() -> None:
    async def dies(writer: asyncio.StreamWriter) -> None:
        await sending(HEAD + chunk(b"first"), chunk(b"second")[:-4])(writer)
        writer.transport.abort()

    async with answering(dies) as ask:
        answer = await ask()
        await answer.open()

        with pytest.raises(aiohttp.ClientError):
            await answer.response.content.readany()

    assert not answer.pipe.whole


async def test_silence_is_counted_from_the_last_chunk_also_of_those_that_were_piped() -> None:
    pieces = [chunk(b"%d" % number) for number in range(8)]

    async def falls_silent(writer: asyncio.StreamWriter) -> None:
        await sending(HEAD + chunk(b"first"), *pieces, pause_s=0.1)(writer)
        await asyncio.sleep(5)

    async with answering(falls_silent, silence_s=0.5) as ask:
        answer = await ask()
        await answer.open()
        began = asyncio.get_running_loop().time()

        with pytest.raises(TimeoutError):
            await answer.response.content.readany()

        waited_s = asyncio.get_running_loop().time() - began
    assert answer.client.sent == b"".join(pieces), "eight pauses of 0.1 s are no silence of 0.5 s"
    assert waited_s > 1.0


async def test_interim_answers_do_not_confuse_it() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with answering(sending(early, HEAD[:20], HEAD[20:] + chunk(b"first"), chunk(b"second"), END)) as ask:
        answer = await ask()
        await answer.open()
        await answer.response.content.readany()

    assert answer.client.sent == chunk(b"second")


async def test_usage_is_read_across_piped_chunks() -> None:
    parts = [b'data: {"usage": {"prompt_to', b'kens": 7, "completion_tokens": 9}}\n\n']
    async with answering(sending(HEAD + chunk(b"data: {}\n\n"), *(chunk(part) for part in parts), END)) as ask:
        answer = await ask()
        await answer.open()
        await answer.response.content.readany()

    found = answer.meter.reported()

    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens) == (7, 9)
