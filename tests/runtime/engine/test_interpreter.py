"""The network against the decoder that serves: the same checkpoint must give the same logits through both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from support.checkpoints import write_checkpoint
from support.engines import interpret
from support.generation import Sequenced, generate_greedily
from support.parity import PARITY_CASES, write_case
from windlass_contract.launch_spec import Precision
from windlass_kernels import ops
from windlass_runtime.backends.load import load_backend
from windlass_runtime.engine.graph import DType
from windlass_runtime.engine.shape import PlanShape

SHAPE = PlanShape(capacity=128, decode_rows=4, prefill_rows=2, prefill_tokens=32)
TOLERANCE = 1e-4  # FP32 sums of a few hundred terms in another order stay a decade below it
INTEGERS = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
"""Sizes that split into groups of 32 columns, so that nothing falls back to 8 bits."""
TINY = Path(__file__).parents[3] / "examples/models/windlass-tiny"


@pytest.fixture(autouse=True)
def _torch_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch expands integer weights and keeps inputs in floats, as a plan does; our CPU kernels round inputs."""
    monkeypatch.setattr(ops, "available", lambda: ops.Availability(False, "switched off"))


def build_prompts(vocabulary: int = 101) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in (75, 1, 33, 64)]


def largest_difference(found: list[Sequenced], expected: list[Sequenced]) -> float:
    return max(
        float((torch.stack(a.logits) - torch.stack(b.logits)).abs().max()) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("case", PARITY_CASES)
def test_the_network_of_every_family_gives_the_decoders_logits(case: str, tmp_path: Path) -> None:
    folder, prompts = write_case(tmp_path, case), build_prompts()
    expected = generate_greedily(load_backend(folder, cache_bytes=2**22), prompts, 12)

    found = generate_greedily(interpret(folder, shape=SHAPE), prompts, 12, chunk=40, stagger=3)

    assert [sequence.generated for sequence in found] == [sequence.generated for sequence in expected]
    assert largest_difference(found, expected) <= TOLERANCE


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Glm4ForCausalLM"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_a_network_in_integers_gives_the_decoders_logits(
    architecture: str, precision: Precision, tied: bool, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, architecture, tie_word_embeddings=tied, **INTEGERS)
    backend = load_backend(folder, precision=precision, cache_bytes=2**22)
    expected = generate_greedily(backend, build_prompts(), 8)

    found = generate_greedily(interpret(folder, precision.value, shape=SHAPE), build_prompts(), 8, stagger=2)

    assert [sequence.generated for sequence in found] == [sequence.generated for sequence in expected]
    assert largest_difference(found, expected) <= TOLERANCE


def test_the_shipped_model_in_half_arithmetic_says_what_the_decoder_says() -> None:
    shape = PlanShape(capacity=128, decode_rows=2, prefill_rows=2, prefill_tokens=64)
    prompts = build_prompts(2048)[2:]
    expected = generate_greedily(load_backend(TINY, precision=Precision.INT8, cache_bytes=2**24), prompts, 8)

    found = generate_greedily(interpret(TINY, "INT8", DType.FP16, shape=shape), prompts, 8)

    # FP16 keeps 11 bits: six layers of logits up to 20 stay within a tenth of their spread.
    assert largest_difference(found, expected) <= 0.1
    assert [sequence.generated for sequence in found] == [sequence.generated for sequence in expected]
