from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from support.generation import Sequenced, generate_greedily
from support.parity import PARITY_CASES, load_reference, reference_greedy, reference_logits, write_case
from windlass_contract.launch_spec import Device, Precision
from windlass_kernels import ops
from windlass_runtime.backends.load import load_backend

NEW_TOKENS = 64
TOLERANCE = 1e-4  # the figure; FP32 sums of a few hundred terms in another order stay a decade below it
PROMPT_LENGTHS = (75, 1, 33, 64)


def build_prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(101) for _ in range(length)] for length in PROMPT_LENGTHS]


def largest_difference(sequence: Sequenced, reference: torch.Tensor) -> float:
    """Over every logit that decided a token."""
    decided = reference[sequence.prompt_length - 1 : len(sequence.tokens) - 1]
    return float((torch.stack(sequence.logits).float().cpu() - decided).abs().max())


@pytest.fixture(params=["native kernels", "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways a CPU can compute; the second is what a machine without a C++ compiler gets."""
    name: str = request.param
    if name == "torch":
        monkeypatch.setattr(ops, "available", lambda: ops.Availability(False, "switched off"))
    elif not ops.available():
        pytest.skip(ops.available().reason)
    return name


@pytest.mark.parametrize("case", PARITY_CASES)
def test_logits_and_greedy_tokens_equal_those_of_transformers(
    case: str, arithmetic: str, tmp_path: Path, record_property: Any
) -> None:
    folder = write_case(tmp_path, case)
    backend, reference = load_backend(folder, cache_bytes=2**22), load_reference(folder)
    prompts = build_prompts()

    alone = [generate_greedily(backend, [prompt], NEW_TOKENS)[0] for prompt in prompts]
    batched = generate_greedily(backend, prompts, NEW_TOKENS, chunk=17, stagger=3)

    expected = [reference_greedy(reference, prompt, NEW_TOKENS) for prompt in prompts]
    logits = [reference_logits(reference, sequence.tokens) for sequence in alone]
    difference = max(
        largest_difference(sequence, reference)
        for sequences in (alone, batched)
        for sequence, reference in zip(sequences, logits, strict=True)
    )
    equal = sum(sequence.generated == wanted for sequence, wanted in zip(alone + batched, expected * 2, strict=True))
    record_property(
        "parity",
        (case, f"cpu FP32, {arithmetic}", f"{difference:.1e}", f"{TOLERANCE:.0e}", f"{equal} of {2 * len(prompts)}"),
    )
    assert difference <= TOLERANCE
    assert [sequence.generated for sequence in alone] == expected
    assert [sequence.generated for sequence in batched] == expected


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("case", ["llama: grouped heads", "qwen3", "glm4"])
def test_half_formats_on_a_cpu_are_as_close_to_fp32_as_transformers_are(
    case: str, precision: Precision, arithmetic: str, tmp_path: Path, record_property: Any
) -> None:
    folder = write_case(tmp_path, case)
    backend = load_backend(folder, precision=precision, cache_bytes=2**22)

    sequences = generate_greedily(backend, build_prompts(), 8, chunk=17, stagger=3)

    ours, theirs = errors_against_fp32(folder, precision, "cpu", sequences)
    record_property("parity", (case, f"cpu {precision}, {arithmetic}", f"{ours:.1e}", f"{2 * theirs:.1e}", "-"))
    assert ours <= 2 * theirs


def errors_against_fp32(
    folder: Path, precision: Precision, device: str, sequences: list[Sequenced]
) -> tuple[float, float]:
    """Largest logit error of ours and of transformers in the same format.

    Rounding differs by the order of operations, so equal quality and not equal values is the measure.
    """
    dtype = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[precision]
    exact, rounded = load_reference(folder), load_reference(folder, device=device, dtype=dtype)
    ours, theirs = 0.0, 0.0
    for item in sequences:
        truth = reference_logits(exact, item.tokens)
        ours = max(ours, largest_difference(item, truth))
        theirs = max(theirs, float((reference_logits(rounded, item.tokens) - truth).abs().max()))
    return ours, theirs


@pytest.mark.gpu
@pytest.mark.parametrize("case", PARITY_CASES)
def test_cuda_in_fp32_equals_transformers(case: str, tmp_path: Path, record_property: Any) -> None:
    folder = write_case(tmp_path, case)
    backend = load_backend(folder, device=Device.CUDA, precision=Precision.FP32, cache_bytes=2**22)
    reference = load_reference(folder)
    prompts = build_prompts()

    batched = generate_greedily(backend, prompts, NEW_TOKENS, chunk=17, stagger=3)

    difference = max(largest_difference(item, reference_logits(reference, item.tokens)) for item in batched)
    equal = sum(
        item.generated == reference_greedy(reference, prompt, NEW_TOKENS)
        for item, prompt in zip(batched, prompts, strict=True)
    )
    record_property("parity", (case, "cuda FP32", f"{difference:.1e}", "1e-03", f"{equal} of {len(prompts)}"))
    assert difference <= 1e-3  # cuBLAS may split sums differently per shape


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("case", PARITY_CASES)
def test_cuda_half_formats_are_as_close_to_fp32_as_transformers_are(
    case: str, precision: Precision, tmp_path: Path, record_property: Any
) -> None:
    folder = write_case(tmp_path, case)
    backend = load_backend(folder, device=Device.CUDA, precision=precision, cache_bytes=2**22)

    sequences = generate_greedily(backend, build_prompts(), NEW_TOKENS, chunk=17, stagger=3)

    ours, theirs = errors_against_fp32(folder, precision, "cuda", sequences)
    record_property("parity", (case, f"cuda {precision}", f"{ours:.1e}", f"{2 * theirs:.1e}", "-"))
    assert ours <= 2 * theirs
