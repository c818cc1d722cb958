"""Chunks are followed exactly as far as they are plain ones, however their bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_gateway.chunks import LARGEST_CHUNK, BrokenChunkError, ChunkScanner

bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=12)


def encode(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


@given(bodies, st.lists(st.integers(1, 30), max_size=60))
def test_however_bytes_are_cut_each_chunk_is_followed_to_its_end(chunks: list[bytes], cuts: list[int]) -> None:
    """Where a cut goes through a size, the rest is somebody else's: nothing before it may be missing or too much."""
    data, scanner, position = encode(chunks), ChunkScanner(), 0
    ends = {len(encode(chunks[:number])) for number in range(len(chunks) + 1)}

    for cut in [*cuts, len(data)]:
        piece = data[position : position + cut]
        followed = scanner.follow(piece)
        position += followed
        assert scanner.at_boundary == (position in ends)
        if followed < len(piece):
            assert scanner.at_boundary, "what is left begins at a boundary"
            return


@given(bodies)
def test_the_last_chunk_is_left_to_the_parser(chunks: list[bytes]) -> None:
    scanner, body = ChunkScanner(), encode(chunks)

    assert scanner.follow(body + b"0\r\n\r\n") == len(body)
    assert scanner.at_boundary


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"5;name=value\r\nhello\r\n", id="an extension"),
        pytest.param(b"+5\r\nhello\r\n", id="a sign"),
        pytest.param(b"5 \r\nhello\r\n", id="a blank"),
        pytest.param(b"1_0\r\n", id="an underscore"),
        pytest.param(b"\r\nhello", id="no size"),
        pytest.param(b"%x\r\n" % (LARGEST_CHUNK + 1), id="too large"),
        pytest.param(b"000005\r\nhello\r\n", id="more digits than needed"),
        pytest.param(b"1f", id="half a size"),
        pytest.param(b"1f\r", id="half a line end"),
    ],
)
def test_what_is_no_plain_chunk_is_left_to_the_parser(rest: bytes) -> None:
    assert ChunkScanner().follow(encode([b"hello"]) + rest) == len(encode([b"hello"]))


@given(st.binary(min_size=1, max_size=10), st.binary(min_size=2, max_size=2).filter(lambda end: end != b"\r\n"))
def test_a_chunk_that_goes_on_beyond_its_size_is_broken(chunk: bytes, end: bytes) -> None:
    """Sent on, what follows would be read as another answer by whoever shares the client's connection."""
    data = b"%x\r\n%s%s" % (len(chunk), chunk, end)
    for cut in range(len(data) - 2, len(data) + 1):
        with pytest.raises(BrokenChunkError):
            follow_all(data[:cut], data[cut:])


def follow_all(*pieces: bytes) -> None:
    scanner = ChunkScanner()
    for piece in pieces:
        scanner.follow(piece)
