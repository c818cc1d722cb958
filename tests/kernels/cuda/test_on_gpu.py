"""Every device kernel on a GPU against its reference, with fresh random inputs: part of `make gpu-check`."""

from __future__ import annotations

import secrets

import pytest
import torch

from windlass_kernels.cuda import compile as cuda_compile
from windlass_kernels.cuda import samples
from windlass_kernels.cuda.cuda_core import CudaRuntime
from windlass_kernels.cuda.device import Launcher, to_device
from windlass_kernels.cuda.schema import find_differences

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
LABELS = [f"{sample.op.name}: {sample.label}" for sample in samples.build_small(seed=0)]


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    return Launcher(CudaRuntime(), cuda_compile.compile_unit)


@pytest.mark.parametrize("index", range(len(LABELS)), ids=LABELS)
def test_a_kernel_agrees_with_its_reference(launcher: Launcher, index: int) -> None:
    seed = secrets.randbits(32)
    sample = samples.build_small(seed)[index]
    expected = sample.op.reference(**sample.inputs, **sample.attributes)

    results = launcher.run(sample.op, to_device(launcher.runtime, sample.inputs), sample.attributes)

    found = [launcher.runtime.read(array) for array in results.values()]
    assert find_differences(sample.op, found, expected) == [], f"seed {seed}"


def test_a_captured_graph_gives_what_a_launch_gives(launcher: Launcher) -> None:
    sample = samples.gemv(samples.Maker(secrets.randbits(32)), 4, 512, 1024, 64)
    inputs, target = to_device(launcher.runtime, sample.inputs), launcher.runtime.allocate((4, 512), "float16")
    launched = launcher.runtime.read(launcher.run(sample.op, inputs)["y"])

    replay = launcher.runtime.capture(
        lambda stream: launcher.run(sample.op, inputs, outputs={"y": target}, stream=stream) and None
    )
    replay()

    assert (launcher.runtime.read(target) == launched).all()
