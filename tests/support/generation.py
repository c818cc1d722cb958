"""Drive a backend greedily without a scheduler: fixed page tables, chunked prompts, prefill and decode in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from windlass_runtime.backends.base import Backend, Batch, Row


@dataclass
class Sequenced:
    """One sequence while it is driven."""

    name: str
    tokens: list[int]
    prompt_length: int
    page_table: tuple[int, ...]
    computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    def next_row(self, chunk: int) -> Row:
        stop = min(self.computed + chunk, len(self.tokens))
        return Row(
            self.name,
            tuple(self.tokens[self.computed : stop]),
            self.computed,
            self.page_table,
            stop == len(self.tokens),
        )


def generate_greedily(
    backend: Backend, prompts: Sequence[Sequence[int]], new_tokens: int, *, chunk: int = 10**9, stagger: int = 0
) -> list[Sequenced]:
    """Continue every prompt by `new_tokens`; sequence i joins at step i * stagger, so prefill and decode mix."""
    page_tokens = backend.info.page_tokens
    # Interleaved page ids: neighbours in a sequence are never neighbours in the pool.
    sequences = [
        Sequenced(
            f"row-{index}",
            list(prompt),
            len(prompt),
            tuple(index + page * len(prompts) for page in range(-(-(len(prompt) + new_tokens) // page_tokens))),
        )
        for index, prompt in enumerate(prompts)
    ]
    step = 0
    while any(len(sequence.generated) < new_tokens for sequence in sequences):
        running = [
            sequence
            for index, sequence in enumerate(sequences)
            if step >= index * stagger and len(sequence.generated) < new_tokens
        ]
        rows = tuple(sequence.next_row(chunk) for sequence in running)
        logits = iter(backend.step(Batch(rows)))
        for sequence, row in zip(running, rows, strict=True):
            sequence.computed += len(row.token_ids)
            if row.wants_logits:
                sequence.logits.append(next(logits))
                sequence.tokens.append(int(sequence.logits[-1].argmax()))
        step += 1
    return sequences
