"""One generation request and what comes back, piece by piece. Shared by `loop`, `serve` and the Python API."""

from __future__ import annotations

import dataclasses
from typing import Any

from windlass_runtime import errors
from windlass_runtime.backends.sampling_params import SampledToken, SamplingParams
from windlass_runtime.scheduling.sequence import FinishReason
from windlass_runtime.scheduling.stop_strings import StopStrings
from windlass_runtime.text import IncrementalDecoder


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a client asks for, checked against nothing yet."""

    request_id: str
    """Unique among requests in the engine."""
    prompt: tuple[int, ...]
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    max_new_tokens: int | None = None
    """None allows all that fits behind the prompt."""
    choices: int = 1
    """Independent continuations; with a seed, choice i uses seed + i."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    tenant: str = ""
    """Who shares the engine with whom; decided by the server, never by the request's own text."""
    priority: int = 0
    """Lower runs first, among the tenant's own requests."""
    deadline_s: float | None = None
    """Seconds from arrival within which the first token is wanted; orders requests of one tenant and priority, and a
    request that has not begun by then is ended with DeadlineMissed. None: no hurry."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Progress of one choice. Joined over a choice, `text` and `tokens` are the whole answer."""

    choice: int
    text: str
    tokens: tuple[SampledToken, ...]
    """Tokens whose text starts in what was shown; the token that ended the sequence by its id is not among them."""
    token_ids: tuple[int, ...]
    """Every token generated since the last piece, shown or not, ending tokens included."""
    finish: FinishReason | None = None
    cached_tokens: int = 0
    """Leading prompt tokens that were found in the cache; the same in every piece of a choice."""


Event = Piece | errors.RuntimeFault
"""A fault is the last event of its request; else every choice ends with a Piece that has `finish`."""


class Choice:
    """One continuation while it runs: sampler state, text decoding, stop strings."""

    def __init__(self, index: int, sampler: Any, decoder: IncrementalDecoder | None, stop: tuple[str, ...]) -> None:
        """Without a decoder there is no text, and tokens are passed on at once. `sampler` is a Sampler's state."""
        self.index = index
        self.sampler = sampler
        self.cached_tokens = 0
        """Leading prompt tokens found in the cache; known once the first token is."""
        self.last_token_s: float | None = None
        """When the last token came, on the engine's clock; None before the first."""
        self._decoder = decoder
        self._stops = StopStrings(stop)
        self._unreported: list[int] = []
        self._held: list[tuple[int, SampledToken]] = []
        """Tokens not passed on yet, with the place in the text where each starts."""
        self._decoded = 0
        self._shown = 0

    def accept(self, token: SampledToken, reason: FinishReason | None) -> Piece | None:
        """Take the next token; `reason` is the scheduler's verdict on it. None while there is nothing to show."""
        self._unreported.append(token.token_id)
        ended_by_token = reason is FinishReason.STOP
        if self._decoder is None:
            return self._piece("", () if ended_by_token else (token,), reason)
        text, stopped = "", False
        if not ended_by_token:
            self._held.append((self._decoded, token))
            text, stopped = self._show(self._decoder.feed(token.token_id))
        if reason is not None and not stopped:
            rest, stopped = self._show(self._decoder.flush())
            text += rest
        if stopped:
            return self._piece(text, self._release(), FinishReason.STOP)
        if reason is not None:
            text += self._stops.flush()
            tokens = tuple(held for _, held in self._held)
            return self._piece(text, tokens, reason)
        tokens = self._release()
        return self._piece(text, tokens, None) if text or tokens else None

    def _show(self, decoded: str) -> tuple[str, bool]:
        self._decoded += len(decoded)
        text, stopped = self._stops.feed(decoded)
        self._shown += len(text)
        return text, stopped

    def _release(self) -> tuple[SampledToken, ...]:
        """Tokens that start before the end of what was shown; a stop string's own tokens never do."""
        ready = tuple(token for start, token in self._held if start < self._shown)
        self._held = self._held[len(ready) :]
        return ready

    def _piece(self, text: str, tokens: tuple[SampledToken, ...], finish: FinishReason | None) -> Piece:
        token_ids, self._unreported = tuple(self._unreported), []
        return Piece(self.index, text, tokens, token_ids, finish, self.cached_tokens)
