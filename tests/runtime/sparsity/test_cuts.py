"""Cuts hold the mass they promise, with as few blocks as possible; modes take the sparsest target they may."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_runtime.quant.recipe import Quality
from windlass_runtime.sparsity.cuts import choose_cuts, choose_modes
from windlass_runtime.sparsity.gate import Target


@given(tokens=st.integers(1, 30), blocks=st.integers(1, 9), mass=st.floats(0.05, 0.99), seed=st.integers(0, 999))
def test_blocks_above_the_cut_hold_the_mass_and_one_fewer_would_not(
    tokens: int, blocks: int, mass: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.random((tokens, blocks), np.float32)
    shares = draw.dirichlet(np.ones(blocks), tokens).astype(np.float32)

    (cut,) = choose_cuts(scores, shares, [mass])

    held = float((shares * (scores > cut)).sum()) / tokens
    fewer = float((shares * (scores > scores[scores > cut].min())).sum()) / tokens
    assert held >= mass - 1e-5
    assert fewer < mass + 1e-5


def build_target(density: float, loss: float) -> Target:
    return Target(0.9, density, 0.9, Quality(10, 10.0, 10.0 * (1 + loss), 0.0, 1.0, {}))


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        pytest.param([(0.4, 0.05), (0.6, 0.02), (0.8, 0.005)], {"balanced": 2, "max": 1}, id="one each"),
        pytest.param([(0.6, 0.02), (0.4, 0.001)], {"balanced": 1, "max": 1}, id="the sparsest, wherever it stands"),
        pytest.param([(0.4, 0.5)], {"balanced": None, "max": None}, id="all lose too much"),
        pytest.param([(0.4, float("nan"))], {"balanced": None, "max": None}, id="not a number is no quality"),
    ],
)
def test_a_mode_takes_the_sparsest_target_within_its_limit(
    targets: list[tuple[float, float]], chosen: dict[str, int | None]
) -> None:
    assert choose_modes([build_target(*target) for target in targets], {"balanced": 0.01, "max": 0.03}) == chosen
