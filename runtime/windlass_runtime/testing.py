"""Fakes that ship with the package: a Backend without a model, for tests of schedulers, loops and servers.

FakeBackend's next token is a function of the whole sequence so far, read back through the page table; a scheduler that
loses, repeats or mixes up a single token or page produces other tokens than `continuation` says.
"""

from __future__ import annotations

import dataclasses
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch

from windlass_runtime.backends.base import BackendInfo, Batch, Row

_PEAK: Final = 10.0


def next_token(tokens: Iterable[int], vocabulary_size: int) -> int:
    """The token FakeBackend finds most likely after `tokens`: a checksum of all of them."""
    return zlib.crc32(b"".join(token.to_bytes(4, "little") for token in tokens)) % vocabulary_size


def continuation(
    prompt: Sequence[int], count: int, vocabulary_size: int, stop_token_ids: Iterable[int] = ()
) -> list[int]:
    """Greedy continuation of `prompt` as FakeBackend computes it: `count` tokens, fewer if a stop token ends it."""
    tokens, stops = list(prompt), frozenset(stop_token_ids)
    for _ in range(count):
        tokens.append(next_token(tokens, vocabulary_size))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


class FakeBackend:
    """A Backend that stores token ids in its pages instead of keys and values.

    `choose` replaces `next_token`, to script replies. `before_step` is called on the engine thread at the start of each
    step: it may raise, or wait on an event. Broken invariants raise AssertionError out of `step`.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int = 256,
        page_tokens: int = 4,
        page_count: int = 64,
        max_sequence_tokens: int = 128,
        eos_token_ids: tuple[int, ...] = (),
        choose: Callable[[Sequence[int]], int] | None = None,
        before_step: Callable[[Batch], None] | None = None,
    ) -> None:
        self._info = BackendInfo(
            vocabulary_size=vocabulary_size,
            page_tokens=page_tokens,
            page_count=page_count,
            max_sequence_tokens=max_sequence_tokens,
            eos_token_ids=eos_token_ids,
            weight_bytes=0,
            cache_bytes=page_tokens * page_count * 4,
        )
        self._choose = choose or (lambda tokens: next_token(tokens, vocabulary_size))
        self.before_step = before_step
        self._cells = [[-1] * page_tokens for _ in range(page_count)]
        self._thread: int | None = None
        self.steps: list[StepRecord] = []
        self.closed = False

    @property
    def info(self) -> BackendInfo:
        return self._info

    def step(self, batch: Batch) -> torch.Tensor:
        """Check the batch, store its tokens, return logits [N, V] that peak at the next token."""
        assert not self.closed, "step after close"
        self._thread = self._thread or threading.get_ident()
        assert self._thread == threading.get_ident(), "step from a second thread"
        if self.before_step is not None:
            self.before_step(batch)
        self._check(batch)
        for row in batch.rows:
            self._store(row)
        wanted = [row for row in batch.rows if row.wants_logits]
        self.steps.append(StepRecord(len(batch.rows), sum(len(row.token_ids) for row in batch.rows)))
        if not wanted:
            return torch.empty(0, self._info.vocabulary_size)
        return torch.stack([self._logits(row) for row in wanted])

    def close(self) -> None:
        self.closed = True

    def _check(self, batch: Batch) -> None:
        assert batch.rows, "an empty batch"
        names = [row.request_id for row in batch.rows]
        assert len(set(names)) == len(names), f"a request twice in one batch: {names}"
        size = self._info.page_tokens
        held = Counter(page for row in batch.rows for page in set(row.page_table))
        written = [page for row in batch.rows for page in row.page_table[row.start // size :]]
        assert all(held[page] == 1 for page in written), "a row writes to a page of another"
        lanes = [row.lane for row in batch.rows]
        assert len(set(lanes)) == len(lanes), f"two rows in one lane: {lanes}"
        for row in batch.rows:
            end = row.start + len(row.token_ids)
            assert row.token_ids, f"{row.request_id}: a row without tokens"
            assert end <= self._info.max_sequence_tokens, f"{row.request_id}: {end} tokens exceed the sequence limit"
            assert end <= len(row.page_table) * self._info.page_tokens, f"{row.request_id}: pages do not cover {end}"
            assert all(0 <= page < self._info.page_count for page in row.page_table), f"{row.request_id}: unknown page"
            assert all(0 <= token < self._info.vocabulary_size for token in row.token_ids), f"{row.request_id}: token"

    def _store(self, row: Row) -> None:
        for position, token in enumerate(row.token_ids, start=row.start):
            page, offset = divmod(position, self._info.page_tokens)
            self._cells[row.page_table[page]][offset] = token

    def _logits(self, row: Row) -> torch.Tensor:
        end = row.start + len(row.token_ids)
        cells = [cell for page in row.page_table for cell in self._cells[page]][:end]
        logits = torch.linspace(-1.0, 1.0, self._info.vocabulary_size)
        logits[self._choose(cells)] = _PEAK
        return logits


@dataclasses.dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step of FakeBackend was asked to compute."""

    rows: int
    tokens: int
