"""Direct launches: the launcher on this processor as a device, and what a machine without a GPU is told."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from windlass_kernels.cuda import cuda_core, products, samples
from windlass_kernels.cuda.device import DeviceArray, DeviceError, Launcher, from_tensor, to_device
from windlass_kernels.cuda.emulate import EmulatedRuntime
from windlass_kernels.cuda.schema import OpError, find_differences


@pytest.fixture
def runtime() -> EmulatedRuntime:
    return EmulatedRuntime()


@pytest.fixture
def compiled() -> list[tuple[str, str]]:
    """What the launcher had compiled, in order."""
    return []


@pytest.fixture
def launcher(runtime: EmulatedRuntime, compiled: list[tuple[str, str]]) -> Launcher:
    def compile_unit(source: str, target: str) -> bytes:
        compiled.append((source, target))
        return b""

    return Launcher(runtime, compile_unit)


def test_a_launch_from_a_registry_entry_gives_what_the_reference_gives(launcher: Launcher) -> None:
    sample = samples.gemv(samples.Maker(1), 2, 40, 128)

    results = launcher.run(sample.op, to_device(launcher.runtime, sample.inputs))

    found = [launcher.runtime.read(results["y"])]
    assert find_differences(sample.op, found, sample.op.reference(**sample.inputs)) == []


def test_a_kernel_is_compiled_once_for_the_target_at_hand(launcher: Launcher, compiled: list[tuple[str, str]]) -> None:
    sample = samples.gemv(samples.Maker(1), 1, 16, 64)
    inputs = to_device(launcher.runtime, sample.inputs)

    launcher.run(sample.op, inputs)
    launcher.run(sample.op, inputs)

    assert compiled == [("gemv.cu", "host")]


def test_outputs_may_be_given_and_those_in_place_are_the_inputs(launcher: Launcher) -> None:
    sample = samples.gemv(samples.Maker(1), 1, 16, 64)
    target = launcher.runtime.allocate((1, 16), "float16")
    pages = samples.kv_quantize(samples.Maker(1), 2, 1, 64)
    arrays = to_device(launcher.runtime, pages.inputs)

    results = launcher.run(sample.op, to_device(launcher.runtime, sample.inputs), outputs={"y": target})
    updated = launcher.run(pages.op, arrays)

    assert results["y"] is target
    assert updated["pool"] is arrays["pool"]
    assert launcher.runtime.read(arrays["pool"]).any()


def test_an_output_of_another_shape_is_refused(launcher: Launcher) -> None:
    sample = samples.gemv(samples.Maker(1), 1, 16, 64)
    inputs = to_device(launcher.runtime, sample.inputs)
    small = launcher.runtime.allocate((1, 8), "float16")

    with pytest.raises(OpError, match=re.escape("expected y [M, N] float16 = [1, 16], found [1, 8] float16")):
        launcher.run(sample.op, inputs, outputs={"y": small})
    with pytest.raises(OpError, match="expected outputs among those not updated in place"):
        launcher.run(sample.op, inputs, outputs={"z": small})


def test_captured_work_runs_when_it_is_replayed(launcher: Launcher) -> None:
    sample = samples.gemv(samples.Maker(1), 1, 16, 64)
    inputs = to_device(launcher.runtime, sample.inputs)
    target = launcher.runtime.allocate((1, 16), "float16")

    replay = launcher.runtime.capture(
        lambda stream: launcher.run(sample.op, inputs, outputs={"y": target}, stream=stream) and None
    )
    assert not launcher.runtime.read(target).any()
    replay()

    assert launcher.runtime.read(target).any()


def test_tensors_of_torch_are_launched_on_where_they_lie(launcher: Launcher) -> None:
    sample = samples.gemv(samples.Maker(1), 2, 16, 64)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in sample.inputs.items()}
    result = torch.zeros(2, 16, dtype=torch.float16)

    launcher.run(
        sample.op, {name: from_tensor(tensor) for name, tensor in tensors.items()}, None, {"y": from_tensor(result)}
    )

    assert find_differences(sample.op, [result.numpy()], sample.op.reference(**sample.inputs)) == []


def test_a_tensor_with_gaps_is_refused() -> None:
    with pytest.raises(OpError, match=re.escape("expected a contiguous tensor, found [3, 2] float32 with gaps")):
        from_tensor(torch.zeros(2, 3).T)


def test_arrays_know_their_bytes() -> None:
    assert DeviceArray(0, (3, 5), "float16").nbytes == 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so() -> None:
    with pytest.raises(DeviceError, match="device 0: expected a CUDA device with its driver, found none"):
        cuda_core.CudaRuntime()


def test_the_references_take_arrays_of_a_launch_as_they_are() -> None:
    sample = samples.sparse_down(samples.Maker(2), 1, 16, 64, 1)

    (result,) = products.SPARSE_DOWN_INT8.reference(**sample.inputs)

    assert result.shape == (1, 16)
    assert np.isfinite(result).all()
