"""What sparse activation did, in numbers that only grow. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SparsityFigures:
    """Since the start of a replica."""

    looks: int = 0
    """Tokens whose blocks were looked at, in one layer each."""
    density_sum: float = 0.0
    """Over these tokens, the share of the layer's blocks that each used."""
    recall_sum: float = 0.0
    """Over these tokens, the share of the layer's output energy that the used blocks held."""
    computed: int = 0
    """Blocks computed in steps that only generate, over all sparse layers."""
    skipped: int = 0
    """Blocks left out in the same steps."""
