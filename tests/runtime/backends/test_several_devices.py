"""A model whose layers lie on several devices computes what one device computes; every tensor is where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from support.checkpoints import ARCHITECTURES, build_spec, write_checkpoint
from support.generation import generate_greedily
from windlass_contract.launch_spec import Device, Precision
from windlass_kernels import ops
from windlass_runtime.backends.base import Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.checkpoint.layout import expected_tensors
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import CapacityError
from windlass_runtime.kv.store import PageStore, float_layout
from windlass_runtime.model.decoder import Decoder, Stage
from windlass_runtime.model.ragged import lay_out
from windlass_runtime.model.torch_arithmetic import TorchArithmetic
from windlass_runtime.model.weights import load_weights, weight_bytes, weight_parts

PROMPTS = [list(range(1, 71)), [5], list(range(40, 73))]


@pytest.fixture(params=["native kernels", "torch"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(ops, "available", lambda: ops.Availability(False, "switched off"))
    elif not ops.available():
        pytest.skip(ops.available().reason)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_bitwise_those_of_one_device(architecture: str, tied: bool, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, architecture, num_hidden_layers=5, tie_word_embeddings=tied)
    expected = generate_greedily(load_backend(tmp_path, cache_bytes=2**22), PROMPTS, 4, chunk=17, stagger=2)

    for count in (2, 5):
        backend = load_backend(tmp_path, device_count=count, cache_bytes=2**22)
        found = generate_greedily(backend, PROMPTS, 4, chunk=17, stagger=2)

        for one, split in zip(expected, found, strict=True):
            assert torch.equal(torch.stack(one.logits), torch.stack(split.logits)), count


class FakeTensors(CheckpointTensors):
    """Of the right shapes, without bytes."""

    def __init__(self) -> None:
        """Opens nothing."""

    def read_into(self, name: str, destination: torch.Tensor) -> None:
        destination.copy_(torch.empty(destination.shape, device="cpu"))


def build_decoder(spec: ModelSpec, stages: tuple[range, ...]) -> tuple[Decoder, PageStore]:
    targets = [torch.device("cuda", index) for index in range(len(stages))]
    devices = [target for target, layers in zip(targets, stages, strict=True) for _ in layers]
    half = torch.float16
    weights = load_weights(spec, FakeTensors(), dtype=half, norm_dtype=half, devices=devices)
    arithmetics = (TorchArithmetic(spec, target, half) for target in targets)
    decoder = Decoder(spec, weights, list(map(Stage, stages, targets, arithmetics)))
    return decoder, PageStore(float_layout(spec, half), 8, devices=devices)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_op_of_a_step_mixes_devices(architecture: str, tied: bool) -> None:
    """Fake tensors of CUDA devices run the code of GPUs anywhere, and refuse an op over two devices."""
    spec = build_spec(architecture, num_hidden_layers=4, tie_word_embeddings=tied)
    rows = (Row("prompt", tuple(range(40)), 0, (0,), True), Row("next", (7,), 70, (1, 2), True))

    with FakeTensorMode():
        decoder, store = build_decoder(spec, (range(1), range(1, 3), range(3, 4)))
        step = lay_out(rows, torch.device("cuda", 0))
        logits = decoder.forward(step, store, torch.tensor([39, 40], device="cuda:2"))

    assert (logits.device, logits.shape) == (torch.device("cuda", 2), (2, spec.vocabulary_size))
    assert [str(pages.keys.device) for pages in store.layers] == ["cuda:0", "cuda:1", "cuda:1", "cuda:2"]
    assert str(decoder.weights.embedding.device) == "cuda:0"
    head = decoder.weights.head.weight
    assert str(head.device) == "cuda:2"
    assert decoder.weights.size_bytes == weight_bytes(spec, torch.float16) + tied * head.numel() * 2


def test_parts_of_a_model_add_up_to_the_whole() -> None:
    spec = build_spec(tie_word_embeddings=True)

    parts = weight_parts(spec, torch.float16)

    assert parts.total == sum(torch.Size(shape).numel() * 2 for shape in expected_tensors(spec).values())
    assert len(parts.layers) == spec.layer_count
    assert parts.shared == parts.embedding == spec.vocabulary_size * spec.hidden_size * 2


def test_the_tightest_device_bounds_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages on one CPU share its memory: the larger part of three layers leaves least per layer."""
    write_checkpoint(tmp_path, tie_word_embeddings=True)
    monkeypatch.setattr("windlass_runtime.backends.load.observe_free_bytes", lambda device: 10 * 2**20)

    alone = load_backend(tmp_path, max_sequence_tokens=64, max_running_requests=10**4, step_tokens=1).info
    split = load_backend(
        tmp_path, device_count=2, max_sequence_tokens=64, max_running_requests=10**4, step_tokens=1
    ).info

    assert split.page_count * 64 * 2 * 2 * 12 * 4 * 2 <= 5 * 2**20, "two layers' part of each page is on one device"
    assert 0.6 < split.page_count / alone.page_count < 0.8


def test_weights_that_fit_no_split_are_refused_with_what_each_device_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setattr("windlass_runtime.backends.load.observe_free_bytes", lambda device: 3000)

    with pytest.raises(CapacityError, match=r"weights: need \d+ bytes as float32, 1500 free on cpu, 1500 free on cpu"):
        load_backend(tmp_path, device_count=2)


def test_more_devices_than_layers_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    with pytest.raises(CapacityError, match="device_count: expected at most the model's 3 layers, found 4"):
        load_backend(tmp_path, device_count=4)


def test_more_devices_than_are_visible_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(CapacityError, match="at most the 2 CUDA devices that are visible, found 4"):
        load_backend(tmp_path, device=Device.CUDA, device_count=4)


@pytest.mark.gpu
def test_layers_on_two_gpus_compute_what_one_computes(tmp_path: Path) -> None:
    """Not yet measured on a GPU: needs two."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    write_checkpoint(tmp_path)
    one, two = (
        generate_greedily(
            load_backend(tmp_path, device=Device.CUDA, device_count=count, precision=Precision.FP32, cache_bytes=2**22),
            PROMPTS,
            6,
        )
        for count in (1, 2)
    )

    for alone, split in zip(one, two, strict=True):
        assert torch.equal(torch.stack(alone.logits), torch.stack(split.logits))
