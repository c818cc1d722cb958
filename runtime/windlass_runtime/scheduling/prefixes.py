"""Beginnings that sequences have in common: found in the pool when a sequence starts, left there as it is computed.

At least one token of a sequence is always computed, for its logits. A page is found again only once it is finished, so
nothing that is found is ever written to.
"""

from __future__ import annotations

from collections.abc import Callable

from windlass_runtime.kv.fingerprints import PrefixChain
from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling.sequence import Sequence


class Prefixes:
    """Reuse for a scheduler's sequences. Not thread-safe."""

    def __init__(
        self, pool: PagePool, page_tokens: int, scope_of: Callable[[str], bytes] | None, prompts_only: bool = False
    ) -> None:
        """scope_of names the secret of a tenant's pages (see `derive_scope`); None: nothing is reused.

        prompts_only  pages with generated tokens stay with their sequence: keys and values of a generated token differ
                      from those it would have in a prompt
        """
        self._pool = pool
        self._page_tokens = page_tokens
        self.scope_of = scope_of
        self._prompts_only = prompts_only
        self._chains: dict[str, PrefixChain] = {}

    def found_pages(self, sequence: Sequence) -> int:
        """How many pages of its beginning `begin` would give a sequence now."""
        return self._pool.find(self._beginning(sequence)) if self.scope_of else 0

    def begin(self, sequence: Sequence) -> int:
        """Give a sequence without pages those of its beginning that are there; returns how many."""
        if self.scope_of is None or sequence.page_table:
            return 0
        sequence.page_table = self._pool.take(self._beginning(sequence))
        sequence.computed = len(sequence.page_table) * self._page_tokens
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.computed
        return len(sequence.page_table)

    def publish(self, sequence: Sequence, computed_before: int) -> None:
        """Let the pages be found that a step has finished."""
        first = computed_before // self._page_tokens
        last = self._shareable(sequence, sequence.computed)
        if self.scope_of is None or first >= last:
            return
        names = self._chain(sequence).first(sequence.tokens, last)
        pages = list(sequence.page_table)
        for index in range(first, last):
            pages[index] = self._pool.publish(pages[index], names[index], names[index - 1] if index else None, index)
        sequence.page_table = tuple(pages)

    def forget(self, sequence: Sequence) -> None:
        """Drop what was remembered of a sequence that leaves; its pages are given back elsewhere."""
        self._chains.pop(sequence.sequence_id, None)

    def _beginning(self, sequence: Sequence) -> list[bytes]:
        return self._chain(sequence).first(sequence.tokens, self._shareable(sequence, len(sequence.tokens) - 1))

    def _shareable(self, sequence: Sequence, tokens: int) -> int:
        """Whole pages within the first `tokens` that sequences may have in common."""
        return (min(tokens, sequence.prompt_tokens) if self._prompts_only else tokens) // self._page_tokens

    def _chain(self, sequence: Sequence) -> PrefixChain:
        chain = self._chains.get(sequence.sequence_id)
        if chain is None:
            assert self.scope_of is not None
            chain = self._chains[sequence.sequence_id] = PrefixChain(self.scope_of(sequence.tenant), self._page_tokens)
        return chain
