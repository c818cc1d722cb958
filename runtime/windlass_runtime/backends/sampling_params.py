"""What a client may ask of sampling, and what comes out: plain values, no tensors. `sampling` obeys them."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from windlass_runtime import errors


class TokenConstraint(Protocol):
    """A place in a grammar; `grammars.Constraint` is the one there is."""

    def fresh(self) -> TokenConstraint:
        """Another one at the start of the same grammar."""
        ...

    def allowed(self) -> Any:
        """[V] bool array: the tokens that may come next; None when the grammar cannot go on."""
        ...

    def accept(self, token_id: int) -> None:
        """Go on by an allowed token."""
        ...


MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is sampled. Raises RequestError naming the field that is out of range."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """Most candidates kept; 0 keeps all."""
    min_p: float = 0.0
    """Keeps candidates at least this likely relative to the most likely one."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added logit) pairs."""
    seed: int | None = None
    """None draws a fresh seed."""
    top_logprobs: int | None = None
    """Alternatives to report per token; None reports no log-probabilities at all."""
    constraint: TokenConstraint | None = None
    """The start of the grammar that the answer follows."""

    def __post_init__(self) -> None:
        _expect("temperature", self.temperature, 0.0, 2.0)
        _expect("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise errors.RequestError("top_p: expected more than 0, found 0", "top_p")
        _expect("top_k", self.top_k, 0, 2**31 - 1)
        _expect("min_p", self.min_p, 0.0, 1.0)
        _expect("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _expect("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _expect("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _expect("top_logprobs", self.top_logprobs or 0, 0, MAX_TOP_LOGPROBS)
        _expect("seed", self.seed or 0, -(2**63), 2**63 - 1)
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise errors.RequestError(
                f"logit_bias: expected at most {MAX_LOGIT_BIASES} tokens, found {len(self.logit_bias)}", "logit_bias"
            )
        for token_id, bias in self.logit_bias:
            _expect("logit_bias", token_id, 0, 2**31 - 1)
            _expect("logit_bias", bias, -100.0, 100.0)

    @property
    def penalises(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def changes_logits(self) -> bool:
        return self.penalises or bool(self.logit_bias) or self.constraint is not None

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def _expect(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so phrased that NaN fails too
        raise errors.RequestError(f"{name}: expected {low} to {high}, found {value}", name)


@dataclasses.dataclass(frozen=True, slots=True)
class SampledToken:
    """One chosen token."""

    token_id: int
    logprob: float | None = None
    """Natural logarithm of the model's probability; None unless asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """Most likely (token id, logprob) pairs, most likely first."""
