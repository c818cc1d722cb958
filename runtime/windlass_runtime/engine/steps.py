"""Cut an engine step into calls of a plan. Pure.

A sequence's keys and values lie in one slot of the plan's cache; a call covers neighbouring slots. Rows that decode
share one call, with idle slots between them computing a token that nobody reads: what it writes lies where that slot's
next token goes. Prompts share a call only where slots are neighbours and counts equal, so nothing is ever padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from windlass_runtime.engine.shape import DECODE, PREFILL, PlanShape


@dataclass(frozen=True, slots=True)
class SlotWork:
    """Tokens to compute for one sequence."""

    slot: int
    token_ids: tuple[int, ...]
    start: int
    """Position of the first."""
    row: int
    """Index in the batch; -1 for an idle slot."""


@dataclass(frozen=True, slots=True)
class Call:
    """One run of the plan: `work` is of consecutive slots, with one count of tokens."""

    profile: int
    work: tuple[SlotWork, ...]

    @property
    def first_slot(self) -> int:
        return self.work[0].slot

    @property
    def tokens(self) -> int:
        """Of each row."""
        return len(self.work[0].token_ids)


def plan_calls(work: Sequence[SlotWork], lengths: Sequence[int], shape: PlanShape) -> list[Call]:
    """Calls in order; the last one with a row of the batch computes that row's last token.

    lengths  positions in use by slot, before the step
    """
    decoding = sorted((item for item in work if len(item.token_ids) == 1), key=lambda item: item.slot)
    prompts = sorted((item for item in work if len(item.token_ids) > 1), key=lambda item: item.slot)
    calls = [_decode(decoding, lengths, shape)] if decoding else []
    return calls + _prefill(prompts, shape)


def _decode(decoding: list[SlotWork], lengths: Sequence[int], shape: PlanShape) -> Call:
    by_slot = {item.slot: item for item in decoding}
    slots = range(decoding[0].slot, decoding[-1].slot + 1)
    return Call(DECODE, tuple(by_slot.get(slot) or _idle(slot, lengths[slot], shape) for slot in slots))


def _idle(slot: int, length: int, shape: PlanShape) -> SlotWork:
    return SlotWork(slot, (0,), min(length, shape.capacity - 1), -1)


def _prefill(prompts: list[SlotWork], shape: PlanShape) -> list[Call]:
    calls: list[Call] = []
    for item in prompts:
        last = calls[-1].work if calls else ()
        fits = len(item.token_ids) <= shape.prefill_tokens and 0 < len(last) < shape.prefill_rows
        if fits and last[-1].slot + 1 == item.slot and len(last[-1].token_ids) == len(item.token_ids):
            calls[-1] = Call(PREFILL, (*last, item))
        else:
            calls += [Call(PREFILL, (chunk,)) for chunk in _chunks(item, shape.prefill_tokens)]
    return calls


def _chunks(item: SlotWork, most: int) -> list[SlotWork]:
    return [
        SlotWork(item.slot, item.token_ids[first : first + most], item.start + first, item.row)
        for first in range(0, len(item.token_ids), most)
    ]
