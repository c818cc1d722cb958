from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.checkpoints import build_spec, write_checkpoint
from windlass_contract.launch_spec import Device, Precision
from windlass_kernels import ops
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import choose_dtype, load_backend
from windlass_runtime.errors import CapacityError, CheckpointError
from windlass_runtime.kv.store import PAGE_TOKENS

PEAK_OF_A_LOAD = """
import sys, pathlib
from windlass_contract.launch_spec import Precision
from windlass_runtime.backends.load import load_backend
precision = Precision.FP32
backend = load_backend(pathlib.Path(sys.argv[1]), precision=precision, cache_bytes=2**22, max_sequence_tokens=64)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(int(peak) * 1024, backend.info.weight_bytes)
"""


def observe_peak_bytes(folder: Path) -> tuple[int, int]:
    result = subprocess.run(
        [sys.executable, "-c", PEAK_OF_A_LOAD, str(folder)], capture_output=True, text=True, timeout=100, check=True
    )
    peak, weights = result.stdout.split()
    return int(peak), int(weights)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["as stored", "converted"])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path, stored: torch.dtype) -> None:
    base, _ = observe_peak_bytes(write_checkpoint(tmp_path / "tiny"))
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "vocab_size": 8000, "head_dim": 256}
    peak, weights = observe_peak_bytes(write_checkpoint(tmp_path / "large", stored=stored, **wide))

    assert weights > 180 * 2**20
    assert peak - base <= 1.3 * weights


def test_the_limits_of_a_launch_spec_reach_the_backend(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, vocab_size=77, eos_token_id=[3, 4])

    info = load_backend(tmp_path, max_running_requests=3, max_sequence_tokens=130).info

    assert (info.vocabulary_size, info.page_tokens, info.eos_token_ids) == (77, PAGE_TOKENS, (3, 4))
    assert (info.max_sequence_tokens, info.page_count) == (130, 9)
    assert info.cache_bytes == 9 * 2 * 3 * 2 * 64 * 12 * 4
    assert info.weight_bytes == (tmp_path / "model.safetensors").stat().st_size - header_bytes(tmp_path)


def header_bytes(folder: Path) -> int:
    with (folder / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize(("asked", "expected"), [(0, 512), (100, 100), (10**6, 512)])
def test_the_sequence_limit_never_exceeds_what_the_model_was_trained_for(
    tmp_path: Path, asked: int, expected: int
) -> None:
    write_checkpoint(tmp_path)

    assert (
        load_backend(tmp_path, max_sequence_tokens=asked, max_running_requests=1).info.max_sequence_tokens == expected
    )


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (Precision.AUTO, torch.float32),
        (Precision.FP32, torch.float32),
        (Precision.BF16, torch.bfloat16),
        (Precision.FP16, torch.float16),
    ],
)
def test_a_cpu_computes_in_fp32_unless_told_otherwise(precision: Precision, expected: torch.dtype) -> None:
    assert choose_dtype(precision, build_spec(torch_dtype="bfloat16"), torch.device("cpu")) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_half_weights_stay_half_as_large_on_a_cpu_and_compute_as_in_fp32(tmp_path: Path) -> None:
    if not ops.available():
        pytest.skip("plain torch computes in one format throughout")
    write_checkpoint(tmp_path, stored=torch.bfloat16, torch_dtype="bfloat16")
    batch = Batch((Row("a", tuple(range(1, 20)), 0, (0,), wants_logits=True),))

    stored, widened = load_backend(tmp_path), load_backend(tmp_path, precision=Precision.FP32)

    assert stored.info.weight_bytes * 2 == widened.info.weight_bytes
    assert stored.info.cache_bytes == widened.info.cache_bytes
    torch.testing.assert_close(stored.step(batch), widened.step(batch), rtol=0, atol=1e-5)


def test_a_missing_gpu_is_said_plainly(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    with pytest.raises(CapacityError, match="expected a CUDA device, found none"):
        load_backend(tmp_path, device=Device.CUDA)


def test_weights_beyond_the_memory_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setattr("windlass_runtime.backends.load.observe_free_bytes", lambda device: 1000)

    with pytest.raises(CapacityError, match=r"weights: need \d+ bytes as float32, 1000 free on cpu"):
        load_backend(tmp_path)


def test_a_broken_checkpoint_leaves_no_file_open(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        load_backend(tmp_path)
