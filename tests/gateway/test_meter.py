"""Usage is found at the end of replies and streams, however they are cut into pieces, and never in generated text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_gateway.meter import TokenMeter, Usage

USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
REPLY = {"id": "x", "choices": [{"message": {"content": "hello"}}], "usage": USAGE}


def read(*pieces: bytes) -> TokenMeter:
    """A meter that has seen an answer."""
    meter = TokenMeter()
    for piece in pieces:
        meter.note(piece)
    return meter


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(json.dumps(REPLY).encode(), Usage(12, 34), id="a reply"),
        pytest.param(json.dumps(REPLY, indent=2).encode(), Usage(12, 34), id="a reply with spaces"),
        pytest.param(
            json.dumps(
                {**REPLY, "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 3}}, "x": None}
            ).encode(),
            Usage(12, 34),
            id="details and later fields",
        ),
        pytest.param(b'{"usage": {"prompt_tokens": 5, "total_tokens": 5}}', Usage(5, 0), id="an embedding"),
        pytest.param(
            b'data: {"usage":null}\n\n: {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\ndata: [DONE]\n\n',
            Usage(1, 2),
            id="the comment of a stream",
        ),
        pytest.param(b'{"usage": null}', None, id="no usage"),
        pytest.param(b'{"usage": {"prompt_tokens": "many"}}', None, id="nonsense"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_usage_is_read_from_the_end_of_an_answer(answer: bytes, expected: Usage | None) -> None:
    assert read(answer).reported() == expected


@given(st.text(max_size=200))
def test_no_generated_text_passes_for_a_usage(text: str) -> None:
    forged = text + json.dumps({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}) + text
    reply = json.dumps({"choices": [{"message": {"content": forged}}]}).encode()

    assert read(reply).reported() is None


@given(st.lists(st.integers(1, 60), min_size=7, max_size=7))
def test_pieces_may_end_anywhere(cuts: list[int]) -> None:
    rest, pieces = json.dumps(REPLY).encode() + b" " * 300, []
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]

    assert read(*pieces, rest.rstrip()).reported() == Usage(12, 34)


def test_events_are_counted_and_a_long_answer_is_not_kept() -> None:
    meter = read(*(b"data: {}\n\n" * 3 for _ in range(100)), b"x" * 10**6)

    assert meter.events == 300
    assert sum(map(len, meter._pieces)) <= 8 * 4096
