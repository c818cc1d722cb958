"""The sizes of a plan, chosen before it is built: positions of the cache, rows and tokens of prefill and decode. Pure.

A plan has a fixed capacity, since TensorRT's cache layer wants it static; capacities form a ladder, one plan each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from windlass_runtime.engine.graph import Shape, Value
from windlass_runtime.errors import EngineError

LADDER: Final = (512, 2048, 8192, 32768, 131072)
"""Capacities, in positions. A step of four keeps the cache at most four times too large, and plans few."""
PREFILL, DECODE = 0, 1
"""Indices of the two profiles."""
LEAST_ROWS: Final = 2
"""Where a product has exactly one row, TensorRT-RTX writes 8-bit weights out as FP16 at every step instead of fusing
the expansion: so decode, and the head after a prefill, are built for two rows at least, even if one is all they get."""


@dataclass(frozen=True, slots=True)
class PlanShape:
    """Bounds of one plan."""

    capacity: int
    """Positions of a sequence, prompt and output together."""
    decode_rows: int
    """Most sequences of one decode step, and slots of the cache."""
    prefill_rows: int = LEAST_ROWS
    """Most sequences of one prefill call."""
    prefill_tokens: int = 512
    """Most tokens a row of it."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("capacity", self.capacity, 2),
            ("decode rows", self.decode_rows, LEAST_ROWS),
            ("prefill rows", self.prefill_rows, LEAST_ROWS),
            ("prefill tokens", self.prefill_tokens, 1),
        ):
            if value < least:
                raise EngineError(f"plan: {name}: expected {least} or more, found {value}")
        if self.prefill_tokens > self.capacity:
            raise EngineError(
                f"plan: prefill tokens: expected at most the capacity {self.capacity}, found {self.prefill_tokens}"
            )


@dataclass(frozen=True, slots=True)
class Range:
    """Least, usual and largest shape of one input."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


def choose_capacity(tokens: int, max_positions: int) -> int:
    """The least rung that holds sequences of `tokens`, never more than the model was trained for.

    Raises EngineError when the model cannot hold them.
    """
    if tokens > max_positions:
        raise EngineError(f"plan: sequences: expected at most {max_positions} tokens by the model, found {tokens}")
    return min(next((rung for rung in LADDER if rung >= tokens), max_positions), max_positions)


def profile_ranges(inputs: tuple[Value, ...], shape: PlanShape) -> tuple[Mapping[str, Range], Mapping[str, Range]]:
    """Of every input, in the prefill and in the decode profile."""
    prefill = _ranges(inputs, (1, shape.prefill_rows), (1, shape.prefill_tokens))
    decode = _ranges(inputs, (1, shape.decode_rows), (1, 1))
    return prefill, decode


def _ranges(inputs: tuple[Value, ...], rows: tuple[int, int], tokens: tuple[int, int]) -> dict[str, Range]:
    least, largest = {"B": rows[0], "S": tokens[0]}, {"B": rows[1], "S": tokens[1]}
    # Kernels are chosen for the usual shape: full chunks of a prompt, and a few sequences that decode.
    usual = {"B": min(rows[1], 8 if tokens[1] == 1 else 1), "S": tokens[1]}
    return {value.name: Range(*(_fill(value.shape, sizes) for sizes in (least, usual, largest))) for value in inputs}


def _fill(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in shape)
