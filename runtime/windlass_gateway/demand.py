"""Estimate from a request's body how many tokens it will cost. Pure.

Only a reservation depends on it, which is corrected once the answer is there, so it is quick rather than exact: four
bytes of text are one token, which is close for English and too many for code.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, Final

_BYTES_PER_TOKEN: Final = 4
_TOKENS_PER_MESSAGE: Final = 4
"""What a chat template puts around each message, roughly."""
_ASSUMED_ANSWER: Final = 256
"""Tokens of an answer to a request that sets no bound."""
_MAX_PARSED_BYTES: Final = 128 * 2**10
"""A longer body is not parsed, which would hold up everybody else; its length is the estimate."""
_BOUND: Final = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d{1,9})\b')
_MAX_CHOICES: Final = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Demand:
    """What a request will cost."""

    prompt_tokens: int = 0
    answer_tokens: int = 0


NOTHING: Final = Demand()


def estimate_demand(body: bytes) -> Demand:
    """Estimate the tokens of one completion request. A body that cannot be read counts by its length."""
    if len(body) > _MAX_PARSED_BYTES:
        bound = _BOUND.search(body)
        return Demand(_tokens_of_bytes(len(body)), int(bound[1]) if bound is not None else _ASSUMED_ANSWER)
    try:
        parsed = json.loads(body)
        if isinstance(parsed, dict):
            return Demand(_prompt_tokens(parsed), _answer_tokens(parsed))
    except (ValueError, RecursionError):
        pass
    return Demand(_tokens_of_bytes(len(body)), _ASSUMED_ANSWER)


def _prompt_tokens(parsed: dict[str, Any]) -> int:
    messages = parsed.get("messages")
    if isinstance(messages, list):
        return sum(_TOKENS_PER_MESSAGE + _count_text(message) for message in messages)
    return _count_text(parsed.get("prompt")) + _count_text(parsed.get("input"))


def _count_text(value: object) -> int:
    """Tokens of a text, of a list of texts or token ids, or of a message or content part."""
    if isinstance(value, str):
        return _tokens_of_bytes(len(value.encode(errors="surrogatepass")))
    if isinstance(value, list):
        return sum(1 if isinstance(item, int) else _count_text(item) for item in value)
    if isinstance(value, dict):
        return _count_text(value.get("content")) + _count_text(value.get("text"))
    return 0


def _answer_tokens(parsed: dict[str, Any]) -> int:
    bound = _whole(parsed.get("max_completion_tokens")) or _whole(parsed.get("max_tokens")) or _ASSUMED_ANSWER
    return bound * min(_MAX_CHOICES, _whole(parsed.get("n")) or 1)


def _whole(value: object) -> int:
    """A positive whole number; 0 for anything else, which the replica will refuse."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _tokens_of_bytes(count: int) -> int:
    return math.ceil(count / _BYTES_PER_TOKEN)
