"""The feed-forward chain: agrees with float64, selects as the reference does, and no way of computing changes a bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_kernels import ops, packed, reference
from windlass_kernels.checks import ShapeError
from windlass_kernels.feed_forward import NEURON_BLOCK, BlockSelection, FeedForward, Projection, Selected

E, FORMATS = 96, ["float32", "bfloat16", "INT8", "INT4 32", "INT4 64", "INT4 128"]


def build_dense(n: int, k: int, kind: str, seed: int) -> Projection:
    """A projection in one format; INT4 in a group that fits, at most the one named."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, k, generator=generator) / k**0.5
    if not kind.startswith("INT"):
        return Projection(values.to(getattr(torch, kind)), torch.randn(n, generator=generator))
    largest = 127 if kind == "INT8" else 7
    codes = (values / values.abs().max() * largest).round().to(torch.int8)
    if kind == "INT8":
        return Projection(packed.pack(codes, torch.full((n,), 0.004)))
    group = next(size for size in (int(kind.split()[1]), 32) if k % size == 0)
    return Projection(packed.pack(codes, torch.full((n, k // group), 0.07, dtype=torch.float16)))


def build_selection(blocks: int, kind: str, seed: int = 0, cut: float = 0.04) -> BlockSelection:
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(blocks * NEURON_BLOCK, generator=generator) + 0.5
    if kind == "by gate":
        return BlockSelection(cut + 2.3, norms)
    features = 24
    codes = torch.randint(-127, 128, (features, E), generator=generator).to(torch.int8)
    wide, bias = (torch.randn(blocks, size, generator=generator) / 8 for size in (features, 1))
    return BlockSelection(cut, norms, packed.pack(codes, torch.full((features,), 0.005)), wide, bias[:, 0].contiguous())


def build_chain(kind: str, selection: BlockSelection | None = None, blocks: int = 19, **limits: float) -> FeedForward:
    """19 blocks are 1,216 neurons: more than one span of the float products, and an odd end in groups of 128."""
    neurons = blocks * NEURON_BLOCK
    gate_up, down = build_dense(2 * neurons, E, kind, 1), build_dense(E, neurons, kind, 2)
    return FeedForward(gate_up, down, selection, **limits)  # type: ignore[arg-type]


def build_rows(m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, E, generator=generator), torch.randn(m, E, generator=generator)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


def none_of(m: int) -> torch.Tensor:
    return torch.zeros(m, dtype=torch.bool)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_dense_chain_is_its_three_ops(isa: str, kind: str) -> None:
    chain, (x, _) = build_chain(kind), build_rows(3)
    gate_up, down = build_dense(2 * 1216, E, kind, 1), build_dense(E, 1216, kind, 2)

    result = chain.run(x)

    assert torch.equal(bits_of(result), bits_of(down.multiply(ops.silu_mul(gate_up.multiply(x)))))


@pytest.mark.parametrize("selector", ["predicted", "by gate"])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("m", [1, 3, 8])
def test_block_by_block_and_all_at_once_give_the_same_bits(isa: str, m: int, kind: str, selector: str) -> None:
    selection, (x, hints) = build_selection(19, selector), build_rows(m)

    by_block = build_chain(kind, selection, dense_above=1.0).run_selected(x, hints, none_of(m))
    at_once = build_chain(kind, selection, dense_above=0.0).run_selected(x, hints, none_of(m))

    assert torch.equal(by_block.active, at_once.active)
    assert torch.equal(bits_of(by_block.y), bits_of(at_once.y))
    assert at_once.computed == 19
    if isa == "avx512" or m <= 4:
        assert by_block.computed == int(by_block.active.any(0).sum())


@pytest.mark.parametrize("selector", ["predicted", "by gate"])
@pytest.mark.parametrize("kind", ["float32", "INT8", "INT4 32"])
def test_the_result_is_that_of_the_chosen_blocks_in_float64(isa: str, kind: str, selector: str) -> None:
    selection, (x, hints) = build_selection(19, selector), build_rows(2)
    gate_up, down = build_dense(2 * 1216, E, kind, 1), build_dense(E, 1216, kind, 2)

    found = build_chain(kind, selection).run_selected(x, hints, none_of(2), with_mass=True)

    assert 0 < int(found.active.sum()) < found.active.numel()
    gated = reference.silu_mul(gate_up.multiply(x), torch.float64)
    expected = down.multiply(reference.keep_blocks(gated.float(), found.active))
    assert torch.allclose(found.y, expected, atol=1e-5 if kind == "float32" else 2e-3)
    assert found.mass is not None
    assert torch.allclose(found.mass, reference.block_mass(gated, selection.norms, 19).float(), rtol=1e-4)


def test_blocks_are_chosen_as_the_reference_chooses(isa: str) -> None:
    x, hints = build_rows(5)
    predicted, by_gate = build_selection(19, "predicted"), build_selection(19, "by gate")
    assert predicted.narrow is not None
    assert predicted.wide is not None
    assert predicted.bias is not None

    first = build_chain("float32", predicted).run_selected(x, hints, none_of(5)).active
    second = build_chain("float32", by_gate).run_selected(x, hints, none_of(5)).active

    shares = reference.predict_shares(hints, packed.dequantize(predicted.narrow), predicted.wide, predicted.bias)
    clear = (shares / predicted.cut - 1).abs() > 0.1  # the kernels see hints of 8 bits
    assert clear.sum() > 60
    assert torch.equal(first[clear], (shares > predicted.cut)[clear])
    gates = build_dense(2 * 1216, E, "float32", 1).multiply(x)[:, :1216]
    assert torch.equal(second, reference.score_gates(gates, by_gate.norms, 19) > by_gate.cut)


@pytest.mark.parametrize("selector", ["predicted", "by gate"])
@settings(max_examples=25)
@given(
    m=st.integers(1, 12),
    kind=st.sampled_from(FORMATS),
    above=st.sampled_from([0.0, 0.6, 1.0]),
    whole=st.integers(0, 2**12 - 1),
    with_mass=st.booleans(),
    seed=st.integers(0, 50),
)
def test_a_token_gets_the_same_bits_alone_and_in_any_batch(
    selector: str, m: int, kind: str, above: float, whole: int, with_mass: bool, seed: int
) -> None:
    selection, (x, hints) = build_selection(5, selector, seed), build_rows(m, seed)
    all_rows = torch.tensor([bool(whole >> row & 1) for row in range(m)])
    chain = build_chain(kind, selection, blocks=5, dense_above=above)
    alone = build_chain(kind, selection, blocks=5, dense_above=1.0)

    together = chain.run_selected(x, hints, all_rows, with_mass=with_mass)

    for row in range(m):
        one = slice(row, row + 1)
        single = alone.run_selected(x[one].contiguous(), hints[one].contiguous(), all_rows[one])
        assert torch.equal(together.active[one], single.active)
        assert torch.equal(bits_of(together.y[one]), bits_of(single.y))
        if all_rows[row]:
            assert torch.equal(bits_of(together.y[one]), bits_of(chain.run(x[one].contiguous())))


@pytest.mark.parametrize("kind", ["float32", "INT8", "INT4 64"])
def test_a_token_that_wants_no_block_gets_the_bias_alone(isa: str, kind: str) -> None:
    x, hints = build_rows(1)

    found: Selected = build_chain(kind, build_selection(19, "predicted", cut=2.0)).run_selected(x, hints, none_of(1))

    bias = build_dense(E, 1216, kind, 2).bias
    assert found.computed == 0
    assert torch.equal(found.y, torch.zeros(1, E) if bias is None else bias[None].float())


def test_other_devices_and_machines_without_a_compiler_get_the_same_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    selection, (x, hints) = build_selection(19, "by gate"), build_rows(4)
    native = build_chain("float32", selection).run_selected(x, hints, none_of(4), with_mass=True)
    monkeypatch.setattr(ops, "library_for", lambda _: None)

    slow = build_chain("float32", selection).run_selected(x, hints, none_of(4), with_mass=True)

    assert torch.equal(native.active, slow.active)
    assert torch.allclose(native.y, slow.y, atol=1e-4)
    assert native.mass is not None
    assert slow.mass is not None
    assert torch.allclose(native.mass, slow.mass, rtol=1e-3)


@pytest.mark.parametrize(
    ("blocks", "changes", "message"),
    [
        pytest.param(18, {}, "norms must be contiguous", id="another layer's selection"),
        pytest.param(19, {"wide": None}, "narrow, wide and bias together", id="half a predictor"),
        pytest.param(19, {"bias": torch.ones(3)}, "bias must be contiguous", id="bias of other blocks"),
        pytest.param(19, {"norms": torch.ones(3)}, "norms must be contiguous", id="norms of other neurons"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(blocks: int, changes: dict[str, object], message: str) -> None:
    chosen = build_selection(blocks, "predicted")
    values = {name: getattr(chosen, name) for name in ("cut", "norms", "narrow", "wide", "bias")} | changes

    with pytest.raises(ShapeError, match=message):
        build_chain("float32", BlockSelection(**values))


def test_neurons_that_are_no_whole_blocks_cannot_be_selected_from() -> None:
    gate_up, down = build_dense(2 * 96, E, "float32", 1), build_dense(E, 96, "float32", 2)

    with pytest.raises(ShapeError, match="expected a multiple of 64 neurons to select from, found 96"):
        FeedForward(gate_up, down, build_selection(1, "by gate"))


def test_shapes_that_do_not_follow_each_other_are_refused() -> None:
    with pytest.raises(ShapeError, match="down must be"):
        FeedForward(build_dense(128, E, "float32", 1), build_dense(E, 96, "float32", 2))
