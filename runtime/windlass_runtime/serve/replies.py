"""Shapes of OpenAI replies: whole, and as chunks of a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from windlass_runtime.backends.sampling_params import SampledToken
from windlass_runtime.generation import Piece
from windlass_runtime.scheduling.sequence import FinishReason
from windlass_runtime.serve.tool_calls import CallPiece, ToolCallReader
from windlass_runtime.text import TextCodec


@dataclasses.dataclass(slots=True)
class Usage:
    """Tokens of one HTTP request; grows while it runs."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached: dict[int, int] = dataclasses.field(default_factory=dict)
    """Prompt tokens found in the cache, by the index of the prompt."""

    def count(self, prompt: int, piece: Piece) -> None:
        """Add a piece of a choice for one of the prompts, which counts once however many choices it has."""
        self.completion_tokens += len(piece.token_ids)
        if piece.choice == 0:
            self.cached[prompt] = piece.cached_tokens

    def to_body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Heading:
    """Fields that every reply and every chunk of one request repeats."""

    reply_id: str
    model: str
    created_s: int
    """Unix time."""

    def to_body(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": list(choices),
        }


class ChatShape:
    """`chat.completion` and `chat.completion.chunk`."""

    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, tokenizer: TextCodec, wants_logprobs: bool, *, calls_tools: bool = False) -> None:
        """With calls_tools, calls of functions in the text become calls in the reply."""
        self._tokenizer = tokenizer
        self._wants_logprobs = wants_logprobs
        self._calls_tools = calls_tools
        self._readers: dict[int, ToolCallReader] = {}

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """Chunks' choices before the first token: the role."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}]

    def chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        text, calls, finish = self._read(choice, piece)
        delta: dict[str, Any] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [call.to_delta() for call in calls]
        return {"index": choice, "delta": delta, "logprobs": self._logprobs(piece.tokens), "finish_reason": finish}

    def whole(self, choice: int, joined: Piece) -> dict[str, Any]:
        text, calls, finish = self._read(choice, joined)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in calls
            ]
        return {
            "index": choice,
            "message": message,
            "logprobs": self._logprobs(joined.tokens),
            "finish_reason": finish,
        }

    def _read(self, choice: int, piece: Piece) -> tuple[str, list[CallPiece], str | None]:
        """Text, what is new of calls, and the reason that the API gives for the end."""
        if not self._calls_tools:
            return piece.text, [], piece.finish
        reader = self._readers.setdefault(choice, ToolCallReader())
        text, calls = reader.feed(piece.text)
        if piece.finish is None:
            return text, calls, None
        called = reader.calls > 0 and piece.finish is FinishReason.STOP
        return text + reader.flush(), calls, "tool_calls" if called else piece.finish

    def _logprobs(self, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        return {"content": [self._entry(token) for token in tokens], "refusal": None}

    def _entry(self, token: SampledToken) -> dict[str, Any]:
        alternatives = [self._token(token_id, logprob) for token_id, logprob in token.top]
        return {**self._token(token.token_id, token.logprob), "top_logprobs": alternatives}

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        exact = self._tokenizer.token_bytes(token_id)
        return {"token": self._tokenizer.token_text(token_id), "logprob": logprob, "bytes": list(exact)}


class CompletionShape:
    """`text_completion`, for both."""

    whole_kind = "text_completion"
    chunk_kind = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, tokenizer: TextCodec, wants_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._wants_logprobs = wants_logprobs
        self._offsets: dict[int, int] = {}
        """Characters of token text given out, per choice."""

    def opening(self, _choice: int) -> list[dict[str, Any]]:
        return []

    def chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": choice,
            "text": piece.text,
            "logprobs": self._logprobs(choice, piece.tokens),
            "finish_reason": piece.finish,
        }

    def whole(self, choice: int, joined: Piece) -> dict[str, Any]:
        return self.chunk(choice, joined)

    def _logprobs(self, choice: int, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        texts = [self._tokenizer.token_text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(choice, 0))
            self._offsets[choice] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens],
            "text_offset": offsets,
        }

    def _alternatives(self, token: SampledToken) -> dict[str, float] | None:
        if not token.top:
            return None
        # Two tokens may share a text (broken bytes, say); the likelier one comes first and stays.
        found: dict[str, float] = {}
        for token_id, logprob in token.top:
            found.setdefault(self._tokenizer.token_text(token_id), logprob)
        return found


Shape = ChatShape | CompletionShape


def join_pieces(pieces: Sequence[Piece]) -> Piece:
    """One choice as a whole."""
    return Piece(
        choice=pieces[0].choice,
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        finish=pieces[-1].finish,
    )
