"""Text, tokens and moments of simulated replicas."""

import hypothesis
import pytest
from hypothesis import strategies

from windlass_runtime.errors import RequestError
from windlass_runtime.simulate.clock import UNIT_S, age_s, clock_text
from windlass_runtime.simulate.codec import END, VOCABULARY, SimulatedCodec

CODEC = SimulatedCodec()


@hypothesis.given(strategies.text())
def test_every_text_comes_back_from_its_tokens(text: str) -> None:
    tokens = CODEC.encode(text)

    assert CODEC.decode(tokens) == text
    assert all(0 <= token < VOCABULARY and token != END for token in tokens)
    assert b"".join(CODEC.token_bytes(token) for token in tokens) == text.encode()


@hypothesis.given(strategies.text(max_size=60))
def test_pieces_of_a_stream_join_up_to_the_text(text: str) -> None:
    decoder = CODEC.decoder()

    assert "".join(decoder.feed(token) for token in CODEC.encode(text)) + decoder.flush() == text


def test_english_text_has_four_characters_per_token() -> None:
    assert len(CODEC.encode("What is a windlass?")) == 5


def test_half_a_surrogate_pair_is_the_clients_fault() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        CODEC.encode("\ud800")


@hypothesis.given(strategies.floats(0, 1e9), strategies.floats(0, 80))
def test_the_age_of_a_moment_can_be_read_off_its_text(now_s: float, age: float) -> None:
    text = clock_text(now_s)

    assert len(CODEC.encode(text)) == 1
    assert age_s(text, now_s + age) == pytest.approx(age, abs=2 * UNIT_S)
