"""Layers are split so that the pool of pages is as large as any split allows, and no device is overfilled."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_contract.layer_split import ModelParts, split_layers

sizes = st.integers(0, 50)
models = st.builds(
    lambda layers, embedding, head, tied: ModelParts(tuple(layers), embedding, head, min(embedding, head) * tied),
    st.lists(sizes, min_size=1, max_size=9),
    sizes,
    sizes,
    st.booleans(),
)


def room_per_layer(parts: ModelParts, stages: tuple[range, ...], free: tuple[int, ...]) -> int:
    return min((have - parts.on(layers)) // len(layers) for layers, have in zip(stages, free, strict=True))


@settings(max_examples=60, deadline=None)
@given(models, st.lists(st.integers(0, 400), min_size=1, max_size=5).map(tuple))
def test_no_other_split_leaves_a_larger_pool(parts: ModelParts, free: tuple[int, ...]) -> None:
    count = len(parts.layers)
    found = split_layers(parts, free)

    if count < len(free):
        assert found is None
        return
    assert found is not None
    splits = [
        tuple(map(range, (0, *cut), (*cut, count))) for cut in itertools.combinations(range(1, count), len(free) - 1)
    ]
    assert found.stages in splits, "neighbouring layers, all of them, none of them empty"
    assert found.pool_bytes == room_per_layer(parts, found.stages, free) * count
    assert found.pool_bytes == max(room_per_layer(parts, stages, free) for stages in splits) * count


@pytest.mark.parametrize(
    ("parts", "free", "stages"),
    [
        pytest.param(ModelParts((10,) * 8, 0, 0), (100, 100), ((0, 4), (4, 8)), id="equal devices get equal shares"),
        pytest.param(ModelParts((10,) * 8, 20, 0), (100, 100), ((0, 3), (3, 8)), id="the embedding weighs too"),
        pytest.param(ModelParts((10,) * 8, 0, 0), (60, 180), ((0, 2), (2, 8)), id="a smaller device gets fewer layers"),
        pytest.param(ModelParts((10,) * 3, 0, 0), (100,), ((0, 3),), id="one device gets them all"),
    ],
)  # fmt: skip
def test_layers_go_where_there_is_room(
    parts: ModelParts, free: tuple[int, ...], stages: tuple[tuple[int, int], ...]
) -> None:
    found = split_layers(parts, free)

    assert found is not None
    assert found.stages == tuple(range(*bounds) for bounds in stages)


def test_a_tied_head_costs_a_second_table_once_it_is_far_from_the_embedding() -> None:
    parts = ModelParts((10, 10), embedding=30, head=31, shared=30)

    assert parts.on(range(2)) == 20 + 31
    assert parts.on(range(1)) + parts.on(range(1, 2)) == 20 + 30 + 31
