"""Executing packed weights: by torch as the floats they stand for, by the kernels the same but for 8-bit inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import write_checkpoint
from windlass_contract.launch_spec import Precision
from windlass_kernels import ops, packed
from windlass_kernels.feed_forward import Projection
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.torch_backend import TorchBackend
from windlass_runtime.kv.store import PageStore, float_layout
from windlass_runtime.model.decoder import Decoder, Stage
from windlass_runtime.model.ragged import lay_out
from windlass_runtime.model.torch_arithmetic import TorchArithmetic
from windlass_runtime.model.weights import LayerWeights, Weights

TOKENS = tuple(int(token) for token in torch.randint(0, 101, (30,), generator=torch.Generator().manual_seed(5)))
SHAPES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 1}


def widen(weights: Weights) -> Weights:
    """The same model in float64, packed weights expanded: the slow reference."""

    def tensor(value: Any) -> Any:
        if isinstance(value, packed.PackedWeight):
            return packed.dequantize(value, torch.float64)
        if isinstance(value, Projection):
            return Projection(tensor(value.weight), tensor(value.bias))
        return value.double() if isinstance(value, torch.Tensor) else value

    def layer(value: LayerWeights) -> LayerWeights:
        return LayerWeights(*(tensor(getattr(value, item.name)) for item in dataclasses.fields(value)))

    layers = tuple(layer(value) for value in weights.layers)
    return Weights(tensor(weights.embedding), layers, tensor(weights.final_norm), tensor(weights.head), 0)


ROWS = tuple(Row(f"r{at}", TOKENS[: at + 1], 0, (at,), True) for at in range(len(TOKENS)))


def logits_of(backend: TorchBackend) -> torch.Tensor:
    return backend.step(Batch(ROWS)).double()


@torch.inference_mode()
def reference_logits(folder: Path, precision: Precision) -> torch.Tensor:
    """Float64 throughout, from the weights that the backend under test executes."""
    decoder = load_backend(folder, precision=precision, max_sequence_tokens=64)._decoder
    assert decoder is not None
    spec, cpu = decoder.spec, torch.device("cpu")
    stage = Stage(range(spec.layer_count), cpu, TorchArithmetic(spec, cpu, torch.float64))
    exact = Decoder(spec, widen(decoder.weights), [stage])
    devices = (cpu,) * spec.layer_count
    step, store = lay_out(ROWS, cpu), PageStore(float_layout(spec, torch.float64), len(ROWS), devices=devices)
    return exact.forward(step, store, torch.tensor([span.stop - 1 for span in step.spans])).double()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, **SHAPES)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_torch_computes_with_the_floats_that_codes_stand_for(
    folder: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "available", lambda: ops.Availability(False, "switched off"))

    found = logits_of(load_backend(folder, precision=precision, max_sequence_tokens=64))

    # FP32 sums of a hundred terms, as in the parity tests of unquantised models.
    assert (found - reference_logits(folder, precision)).abs().max() <= 1e-4


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_the_kernels_differ_from_float64_by_their_inputs_eight_bits_alone(folder: Path, precision: Precision) -> None:
    if not ops.available():
        pytest.skip(ops.available().reason)

    found = logits_of(load_backend(folder, precision=precision, max_sequence_tokens=64))

    expected = reference_logits(folder, precision)

    # Five products in a row, each with under one hundredth of noise from its inputs (tests/kernels/test_packed.py).
    assert (found - expected).norm() <= 0.03 * expected.norm()
