"""Choose the scores above which blocks are wanted, and the targets that modes stand for. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from windlass_runtime.sparsity.gate import Target

Floats = NDArray[np.float32]
MODE_LIMITS: Final = {"balanced": 0.01, "max": 0.03}
"""Largest perplexity loss of each mode, unless chosen otherwise."""


def choose_cuts(scores: Floats, shares: Floats, masses: Sequence[float]) -> Floats:
    """The highest cut under which the chosen blocks hold each mass on average: [C] for C masses.

    scores, shares  [N, B]  what is known of each block beforehand, and what it then contributes of its token's output
    """
    order = np.argsort(-scores, axis=None, kind="stable")
    held = np.cumsum(shares.reshape(-1)[order], dtype=np.float64) / len(shares)
    last = np.minimum(np.searchsorted(held, np.asarray(masses)), len(held) - 1)
    ranked = scores.reshape(-1)[order]
    # Just below the last score that is needed, so that it lies above the cut.
    return np.nextafter(ranked[last], np.float32(-np.inf), dtype=np.float32)


def choose_modes(targets: Sequence[Target], limits: Mapping[str, float]) -> dict[str, int | None]:
    """The sparsest target that keeps each mode's limit; None where none does."""
    chosen: dict[str, int | None] = {}
    for mode, limit in limits.items():
        kept = [at for at, target in enumerate(targets) if target.quality.perplexity_loss <= limit]
        chosen[mode] = min(kept, key=lambda at: targets[at].density, default=None)
    return chosen
