"""The emulator finds what a device would hide: it is only worth something if broken kernels fail in it."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import pytest

from windlass_kernels.cuda import emulate
from windlass_kernels.cuda.schema import Launch

LAUNCH = Launch((1, 1, 1), 64, 256)


@pytest.fixture(scope="module")
def broken() -> ctypes.CDLL:
    return emulate.compile_library([Path(__file__).with_name("broken.cu")])


def run(broken: ctypes.CDLL, kernel: str, order: str = "forward", count: int = 48) -> float:
    runtime = emulate.EmulatedRuntime()
    values, result = runtime.allocate((count,), "float32"), runtime.allocate((1,), "float32")
    runtime.write(values, np.arange(count, dtype=np.float32))
    emulate.start(kernel, LAUNCH, [values.address, count, result.address], order, broken)
    return float(runtime.read(result)[0])


def test_a_missing_barrier_shows_in_the_result_of_one_of_the_orders(broken: ctypes.CDLL) -> None:
    results = {order: run(broken, "sum_without_barrier", order) for order in emulate.ORDERS}

    assert results["backward"] == 48 * 47 / 2
    assert math.isnan(results["forward"])


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        pytest.param("barrier_for_some", "48 threads wait at the block's barrier, 16 at a warp's", id="split barrier"),
        pytest.param(
            "shuffle_without_a_lane", "0 threads wait at the block's barrier, 31 at a warp's, 33 are gone", id="lane"
        ),
        pytest.param("read_beyond", r"block \(0, 0, 0\), thread 0: access beyond an argument", id="out of bounds"),
        pytest.param("read_askew", "thread 0: misaligned vector access", id="misaligned"),
    ],
)
def test_what_is_undefined_on_a_device_is_an_error_that_names_the_place(
    broken: ctypes.CDLL, kernel: str, message: str
) -> None:
    with pytest.raises(emulate.EmulationError, match=message):
        run(broken, kernel)


def test_the_emulator_works_again_after_a_fault(broken: ctypes.CDLL) -> None:
    with pytest.raises(emulate.EmulationError):
        run(broken, "read_beyond")

    assert run(broken, "sum_without_barrier", "backward") == 48 * 47 / 2


def test_shared_memory_starts_as_no_number(broken: ctypes.CDLL) -> None:
    assert math.isnan(run(broken, "read_unset_shared"))
