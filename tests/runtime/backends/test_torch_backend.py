from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from support.checkpoints import ARCHITECTURES, write_checkpoint
from support.generation import generate_greedily
from windlass_kernels import ops
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.torch_backend import TorchBackend

VOCABULARY = 101


def load(folder: Path, architecture: str = "LlamaForCausalLM") -> TorchBackend:
    return load_backend(write_checkpoint(folder, architecture), cache_bytes=2**22)


def build_prompts(*lengths: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.mark.skipif(not ops.available(), reason=ops.available().reason)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_bitwise_the_same_whatever_else_is_in_the_batch(architecture: str, tmp_path: Path) -> None:
    backend, prompts = load(tmp_path, architecture), build_prompts(70, 1, 30, 64, 9)

    alone = [generate_greedily(backend, [prompt], 20)[0] for prompt in prompts]
    together = generate_greedily(backend, prompts, 20)
    chunked = generate_greedily(backend, prompts, 20, chunk=13, stagger=2)

    for one, two, three in zip(alone, together, chunked, strict=True):
        assert torch.equal(torch.stack(one.logits), torch.stack(two.logits))
        assert torch.equal(torch.stack(one.logits), torch.stack(three.logits))


def test_logits_come_only_for_rows_that_want_them_in_the_order_of_the_batch(tmp_path: Path) -> None:
    backend = load(tmp_path)
    first, silent, last = (
        Row("first", (1, 2, 3), 0, (0,), wants_logits=True),
        Row("silent", (4, 5), 0, (1,), wants_logits=False),
        Row("last", (6,), 0, (2,), wants_logits=True),
    )
    expected = torch.cat([backend.step(Batch((row,))) for row in (first, last)])

    logits = backend.step(Batch((first, silent, last)))

    assert logits.shape == (2, VOCABULARY)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_a_step_that_wants_no_logits_returns_none_of_them(tmp_path: Path) -> None:
    assert load(tmp_path).step(Batch((Row("a", (1, 2), 0, (0,), wants_logits=False),))).shape == (0, VOCABULARY)


def test_a_step_leaves_the_pages_of_others_alone(tmp_path: Path) -> None:
    backend, (prompt,) = load(tmp_path), build_prompts(70)
    expected = generate_greedily(backend, [prompt], 4)[0]
    row = Row("watched", tuple(prompt), 0, (5, 3), wants_logits=True)
    backend.step(Batch((row,)))

    backend.step(Batch((Row("other", tuple(range(100)), 0, (4, 2), wants_logits=True),)))

    resumed = backend.step(Batch((Row("watched", (expected.generated[0],), 70, (5, 3), wants_logits=True),)))
    torch.testing.assert_close(resumed[0], expected.logits[1], rtol=0, atol=1e-4)


def test_results_outlive_the_next_step(tmp_path: Path) -> None:
    backend = load(tmp_path)
    first = backend.step(Batch((Row("a", (1, 2), 0, (0,), wants_logits=True),)))
    kept = first.clone()

    backend.step(Batch((Row("b", (3,), 0, (1,), wants_logits=True),)))

    assert torch.equal(first, kept)


def test_closing_twice_is_fine_and_a_later_step_is_refused(tmp_path: Path) -> None:
    backend = load(tmp_path)

    backend.close()
    backend.close()

    with pytest.raises(ValueError, match="closed backend"):
        backend.step(Batch((Row("a", (1,), 0, (0,), wants_logits=True),)))
