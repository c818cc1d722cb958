"""The number formats of a recipe, and which part of a model a preset keeps in which. Pure values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Format(enum.StrEnum):
    """How a tensor is kept."""

    INT8 = "INT8"
    """Symmetric, one scale per output row."""
    INT4 = "INT4"
    """Symmetric, one FP16 scale per row and group of columns."""
    FP32 = "FP32"
    BF16 = "BF16"
    FP16 = "FP16"

    @property
    def is_integer(self) -> bool:
        return self in (Format.INT8, Format.INT4)


STORED: Final = {"float32": Format.FP32, "bfloat16": Format.BF16, "float16": Format.FP16}
"""Formats of checkpoints, by the names that a ModelSpec uses."""


class Part(enum.StrEnum):
    """The parts of a model whose formats can be chosen."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    FEED_FORWARD = "feedForward"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a recipe must hold on held-out text to count as good, measured against FP32."""

    perplexity_loss: float
    """Largest relative growth of the perplexity; 0.005 is half a percent."""
    divergence: float
    """Largest mean Kullback-Leibler divergence of next-token distributions, nats per token."""
    top1_agreement: float
    """Smallest share of positions where the most likely token is the same."""
    probe_loss: float
    """Largest loss of accuracy in any probe; 0.01 is one point."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Which part is kept in which integer format; None keeps it as the checkpoint stores it."""

    formats: dict[Part, Format | None]
    thresholds: Thresholds


SNR_FLOORS_DB: Final = {Format.INT8: 25.0, Format.INT4: 12.0}
"""Below this signal-to-noise ratio of its output a projection climbs to the next better format."""

PRESETS: Final = {
    "INT8": Preset(
        {
            Part.EMBEDDING: Format.INT4,
            Part.ATTENTION: Format.INT8,
            Part.FEED_FORWARD: Format.INT8,
            Part.HEAD: Format.INT8,
        },
        Thresholds(perplexity_loss=0.005, divergence=0.01, top1_agreement=0.97, probe_loss=0.01),
    ),
    "INT4": Preset(
        {
            Part.EMBEDDING: Format.INT4,
            Part.ATTENTION: Format.INT8,
            Part.FEED_FORWARD: Format.INT4,
            Part.HEAD: Format.INT8,
        },
        Thresholds(perplexity_loss=0.01, divergence=0.02, top1_agreement=0.94, probe_loss=0.01),
    ),
}
"""By the names of LaunchSpec's Precision."""


def climb(wanted: Format, stored: Format) -> Format:
    """The next better format: INT4, INT8, then the checkpoint's own."""
    return Format.INT8 if wanted is Format.INT4 else stored
