"""Answers that follow a grammar: which tokens may come next. The one place that knows llguidance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Self

import llguidance
import numpy as np
from numpy.typing import NDArray

from windlass_runtime import errors
from windlass_runtime.backends.grammar_text import Grammar, GrammarKind

MAX_GRAMMAR_CHARACTERS: Final = 64 * 1024


class Constraint:
    """One sequence's place in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size

    def fresh(self) -> Self:
        """Another one at the start of the same grammar; take it from one that has accepted nothing."""
        return type(self)(self._matcher.deep_copy(), self._vocabulary_size)

    def allowed(self) -> NDArray[np.bool_] | None:
        """[V] whether each token may come next; at the end of the grammar only end tokens may.

        None when the grammar cannot go on: it became too complex.
        """
        if self._matcher.is_error():
            return None
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            return None
        mask = np.zeros(self._vocabulary_size, dtype=np.bool_)
        known = np.unpackbits(packed, bitorder="little")[: self._vocabulary_size]
        mask[: len(known)] = known
        return mask

    def accept(self, token_id: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token_id)


class GrammarCompiler:
    """Turns grammars into constraints for one tokenizer. Thread-safe; compiling releases the interpreter lock."""

    def __init__(self, read_tokenizer: Callable[[], str], vocabulary_size: int, eos_token_ids: Sequence[int]) -> None:
        """read_tokenizer gives a tokenizer.json, once one is needed; vocabulary_size is that of the logits.

        Needs at least one end token: without it an answer could not stop where its grammar does.
        """
        if not eos_token_ids:
            raise ValueError("grammars: expected a model with an end token, found none")
        self._read_tokenizer = read_tokenizer
        self._vocabulary_size = vocabulary_size
        self._eos_token_ids = list(eos_token_ids)
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> Constraint:
        """Raises RequestError naming the field and what is wrong with it. Blocks: up to a second for large ones."""
        if len(grammar.text) > MAX_GRAMMAR_CHARACTERS:
            raise errors.RequestError(
                f"{grammar.field}: expected at most {MAX_GRAMMAR_CHARACTERS} characters, found {len(grammar.text)}",
                grammar.field,
            )
        matcher = llguidance.LLMatcher(self._index_tokenizer(), _to_llguidance(grammar), log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()
            raise errors.RequestError(
                f"{grammar.field}: expected a valid {grammar.kind.value.replace('_', ' ')}, "
                f"found: {reason[0][:200] if reason else 'none'}",
                grammar.field,
            )
        return Constraint(matcher, self._vocabulary_size)

    def _index_tokenizer(self) -> llguidance.LLTokenizer:
        with self._lock:  # takes a second for large vocabularies, so it waits until somebody needs it
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    self._read_tokenizer(), n_vocab=self._vocabulary_size, eos_token=self._eos_token_ids
                )
            return self._tokenizer


def _to_llguidance(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return llguidance.LLMatcher.grammar_from_json_schema(grammar.text)
        case GrammarKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.LARK:
            return llguidance.LLMatcher.grammar_from_lark(grammar.text)
