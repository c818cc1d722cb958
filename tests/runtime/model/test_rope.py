from __future__ import annotations

import math

import pytest
import torch

from windlass_runtime.checkpoint.spec import LinearScaling, Llama3Scaling, RopeSpec
from windlass_runtime.model.rope import inverse_frequencies, rotate_, turns_of
from windlass_runtime.model.weights import pair_neighbours


def test_each_pair_turns_by_its_frequency_and_the_rest_passes() -> None:
    rope = RopeSpec(theta=100.0, rotary_size=4, interleaved=True)
    heads = torch.tensor([[[1.0, 0.0, 1.0, 0.0, 5.0, 6.0]]])

    rotate_(heads, turns_of(torch.tensor([3], dtype=torch.int32), inverse_frequencies(rope)))

    expected = [math.cos(3.0), math.sin(3.0), math.cos(0.3), math.sin(0.3), 5.0, 6.0]
    assert heads.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats_rotate_in_fp32_and_round_once(dtype: torch.dtype) -> None:
    turns = turns_of(torch.arange(50, dtype=torch.int32), inverse_frequencies(RopeSpec(1e4, 16, interleaved=True)))
    heads = torch.randn(50, 3, 20).to(dtype)
    exact = heads.float()
    rotate_(exact, turns)

    rotate_(heads, turns)

    assert torch.equal(heads, exact.to(dtype))


def test_linear_scaling_slows_every_pair_alike() -> None:
    plain = inverse_frequencies(RopeSpec(1e4, 8, interleaved=False))
    scaled = inverse_frequencies(RopeSpec(1e4, 8, interleaved=False, scaling=LinearScaling(4.0)))

    assert torch.allclose(scaled * 4, plain)


def test_llama3_scaling_keeps_fast_pairs_and_slows_slow_ones() -> None:
    scaling = Llama3Scaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_positions=8192)
    plain = inverse_frequencies(RopeSpec(5e5, 128, interleaved=False))
    ratio = inverse_frequencies(RopeSpec(5e5, 128, interleaved=False, scaling=scaling)) / plain
    turns = 8192 * plain / (2 * math.pi)

    assert torch.allclose(ratio[turns > 4], torch.tensor(1.0))
    assert torch.allclose(ratio[turns < 1], torch.tensor(1 / 8))
    between = ratio[(turns > 1) & (turns < 4)]
    assert len(between) > 2
    assert ((between < 1) & (between > 1 / 8)).all()


def test_pairing_moves_partners_together_and_leaves_the_rest() -> None:
    head = torch.arange(8)[:, None].repeat(1, 2)

    pair_neighbours(head, rotary_size=6)

    assert head[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 7]
