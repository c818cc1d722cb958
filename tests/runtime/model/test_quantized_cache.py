"""Pages of 4 and 8 bits through whole steps: answers do not depend on how a prompt was cut, shared or batched."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from support.checkpoints import build_spec, write_checkpoint
from windlass_kernels import native, ops
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.torch_backend import TorchBackend
from windlass_runtime.kv.store import PAGE_TOKENS, plan_layout, sequence_pages
from windlass_runtime.model.tails import lay_out_tails

SHAPE = {"head_dim": 16, "num_hidden_layers": 2, "max_position_embeddings": 512}
TOKENS = [(7 * place + place * place) % 101 for place in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), **SHAPE)


def load(folder: Path, bits: int) -> TorchBackend:
    return load_backend(folder, cache_bits=bits, cache_bytes=8 << 20, max_running_requests=4, step_tokens=320)


@pytest.fixture(scope="module", params=[4, 8])
def backend(request: pytest.FixtureRequest, folder: Path) -> TorchBackend:
    if not ops.available():
        pytest.skip("torch's own arithmetic depends on the batch")
    return load(folder, request.param)


def compute(
    backend: TorchBackend, cuts: list[int], pages: tuple[int, ...], lane: int = 0, start: int = 0
) -> torch.Tensor:
    """Logits after the last token of TOKENS[:cuts[-1]], computed chunk by chunk from `start` on."""
    for end in cuts:
        logits = backend.step(Batch((Row("a", tuple(TOKENS[start:end]), start, pages, end == cuts[-1], lane),)))
        start = end
    return logits[0]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), length=st.integers(1, 300))
def test_logits_are_the_same_bits_however_a_prompt_is_cut(
    backend: TorchBackend, data: st.DataObject, length: int
) -> None:
    inner = data.draw(st.sets(st.integers(1, max(1, length - 1)), max_size=6))
    whole = compute(backend, [length], tuple(range(6)))

    cut = compute(backend, [*sorted(inner - {length}), length], tuple(range(11, 5, -1)), lane=2)

    assert torch.equal(whole, cut)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(66, 300), data=st.data())
def test_a_shared_beginning_never_changes_a_logit(backend: TorchBackend, length: int, data: st.DataObject) -> None:
    shared = data.draw(st.integers(1, (length - 1) // PAGE_TOKENS))
    missed = compute(backend, [length], tuple(range(6)))

    found = compute(backend, [length], (*range(shared), *range(20, 26)), lane=1, start=shared * PAGE_TOKENS)

    assert torch.equal(missed, found)


def test_rows_of_one_step_do_not_disturb_each_other(backend: TorchBackend) -> None:
    alone = compute(backend, [130, 131], tuple(range(6)))
    compute(backend, [130], tuple(range(6)), lane=0)
    first = Row("a", (TOKENS[130],), 130, tuple(range(6)), True, 0)
    second = Row("b", tuple(reversed(TOKENS[:150])), 0, (10, 11, 12), True, 3)

    together = backend.step(Batch((second, first)))

    assert torch.equal(alone, together[1])


def test_an_unfinished_page_survives_steps_of_others_in_its_lane(backend: TorchBackend) -> None:
    alone = compute(backend, [100, 101], tuple(range(6)))
    compute(backend, [100], tuple(range(6)), lane=0)
    for lane in (1, 2, 3):
        compute(backend, [40, 200], tuple(range(10, 16)), lane=lane)

    assert torch.equal(alone, compute(backend, [101], tuple(range(6)), lane=0, start=100))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"])
def test_torch_agrees_with_the_kernels(
    tmp_path: Path, architecture: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ops.available():
        pytest.skip("nothing to compare with")
    folder = write_checkpoint(tmp_path, architecture, **SHAPE)
    with_kernels = compute(load(folder, bits), [70, 200, 201], tuple(range(6)))
    monkeypatch.setattr(native, "load", lambda: native.Loaded(None, "switched off by the test"))
    monkeypatch.setattr(ops, "_library", lambda: None)

    with_torch = compute(load(folder, bits), [70, 200, 201], tuple(range(6)))

    # A tail in float16 against one in float32, which may also move a code by one: of 15 steps or of 255.
    assert torch.nn.functional.cosine_similarity(with_kernels, with_torch, dim=0) > {4: 0.99, 8: 0.999}[bits]


def test_8_bits_are_close_to_floats(folder: Path) -> None:
    floats = compute(load(folder, 0), [300], tuple(range(6)))
    codes = compute(load(folder, 8), [300], tuple(range(6)))

    assert torch.nn.functional.cosine_similarity(floats, codes, dim=0) > 0.999


@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 150)), min_size=1, max_size=4),
)
def test_every_step_within_its_budget_finds_float_pages_that_nobody_else_uses(chunks: list[tuple[int, int]]) -> None:
    spec = build_spec(head_dim=16)
    budget = sum(count for _, count in chunks)
    layout = plan_layout(spec, 4, dtype=torch.float32, tail_dtype=torch.float16, lanes=4, step_tokens=budget)
    rows = [
        Row(
            str(lane),
            (1,) * count,
            start,
            tuple(range(lane * 10, lane * 10 + sequence_pages(start + count))),
            False,
            lane,
        )
        for lane, (start, count) in enumerate(chunks)
    ]

    step = lay_out_tails(rows, layout, torch.device("cpu"))

    for layer in range(3):
        assert len(set(step.slots[layer].tolist())) == budget
        assert int(step.tail_of[layer].max()) < layout.tail_pages
    assert not set(step.tail_of[0].tolist()) & set(range(4, 12)), "another layer's tails"
    assert step.finished.tolist() == [
        row.page_table[page]
        for row, (start, count) in zip(rows, chunks, strict=True)
        for page in range(start // PAGE_TOKENS, (start + count) // PAGE_TOKENS)
    ]


def test_a_lane_beyond_the_layout_is_refused() -> None:
    layout = plan_layout(
        build_spec(head_dim=16), 4, dtype=torch.float32, tail_dtype=torch.float16, lanes=2, step_tokens=8
    )

    with pytest.raises(ValueError, match="lane: expected 0 to 1, found 2"):
        lay_out_tails([Row("a", (1,), 0, (0,), True, 2)], layout, torch.device("cpu"))
