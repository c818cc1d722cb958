"""Neurons that work together share a block; units that share a scale stay whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_runtime.sparsity.ordering import group_evenly, order_neurons


@settings(max_examples=30, deadline=None)
@given(blocks=st.integers(1, 5), unit=st.sampled_from([1, 2, 4, 8, 16]), seed=st.integers(0, 99))
def test_an_order_is_a_permutation_that_keeps_units_whole(blocks: int, unit: int, seed: int) -> None:
    activity = np.random.default_rng(seed).random((20, blocks * 16), np.float32)

    order = order_neurons(activity, 16, unit)

    assert sorted(order.tolist()) == list(range(blocks * 16))
    units = order.reshape(-1, unit)
    assert (units == units[:, :1] + np.arange(unit)).all()
    assert (units[:, 0] % unit == 0).all()


def test_neurons_that_fire_together_end_up_in_one_block() -> None:
    draw = np.random.default_rng(0)
    topics = draw.integers(0, 4, 200)
    member = draw.permutation(np.repeat(np.arange(4), 16))
    activity = (member == topics[:, None]) + 0.1 * draw.random((200, 64), np.float32)

    order = order_neurons(activity.astype(np.float32), 16, 1)

    assert all(len(set(member[block])) == 1 for block in order.reshape(4, 16))


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 6), size=st.integers(1, 8), seed=st.integers(0, 99))
def test_groups_are_equally_large_and_always_the_same(groups: int, size: int, seed: int) -> None:
    points = np.random.default_rng(seed).random((groups * size, 7), np.float32)

    labels = group_evenly(points, groups)

    assert np.bincount(labels, minlength=groups).tolist() == [size] * groups
    assert np.array_equal(labels, group_evenly(points, groups))


@pytest.mark.parametrize("unit", [16, 32])
def test_units_as_large_as_a_block_do_not_move(unit: int) -> None:
    activity = np.random.default_rng(0).random((20, 64), np.float32)

    assert order_neurons(activity, 16, unit).tolist() == list(range(64))
