"""The real nvidia-ml-py over a library without GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.fake_nvml import DRIVER_NOT_LOADED, NO_PERMISSION, NOT_SUPPORTED, FakeNvml
from windlass_operator.power.devices import Cause, DeviceError
from windlass_operator.power.nvml import NvmlDevices


@pytest.fixture
def devices(driver: FakeNvml) -> Iterator[NvmlDevices]:
    opened = NvmlDevices()
    yield opened
    opened.close()


def test_everything_a_gpu_reports_is_read(driver: FakeNvml, devices: NvmlDevices) -> None:
    driver["GPU-a"].energy_mj, driver["GPU-a"].use_percent = 5_000_000_000, 37
    driver["GPU-a"].slices[1].value = b"MIG-1"

    first, second = devices.observe()

    assert (first.uuid, first.index, second.uuid, second.index) == ("GPU-a", 0, "GPU-b", 1)
    assert (first.power_limit_mw, first.min_power_mw, first.max_power_mw) == (700_000, 200_000, 700_000)
    assert (first.clock_mhz, first.max_clock_mhz, first.draw_mw) == (1755, 1980, 90_000)
    assert (first.energy_mj, first.use_percent, first.slices) == (5_000_000_000, 37, ("MIG-1",))


def test_limits_reach_the_gpu_that_is_named(driver: FakeNvml, devices: NvmlDevices) -> None:
    devices.set_power_limit("GPU-b", 350_000)
    devices.cap_clock("GPU-b", 1200)

    assert driver.limits() == {"GPU-a": (700, 0), "GPU-b": (350, 1200)}

    devices.free_clock("GPU-b")

    assert driver.limits()["GPU-b"] == (350, 0)


def test_what_a_gpu_does_not_report_is_none(driver: FakeNvml, devices: NvmlDevices) -> None:
    driver["GPU-a"].max_mw, driver["GPU-a"].no_energy = 0, 1

    first, _ = devices.observe()

    assert (first.power_limit_mw, first.min_power_mw, first.draw_mw, first.energy_mj) == (None, None, None, None)
    assert first.clock_mhz == 1755


def test_a_lost_gpu_is_left_out_and_the_others_are_read(driver: FakeNvml, devices: NvmlDevices) -> None:
    driver["GPU-a"].lost = 1

    assert [gpu.uuid for gpu in devices.observe()] == ["GPU-b"]


@pytest.mark.parametrize(
    ("field", "code", "cause", "step"),
    [
        pytest.param("fail_power", NO_PERMISSION, Cause.NO_PERMISSION, "capability SYS_ADMIN", id="no permission"),
        pytest.param("fail_power", NOT_SUPPORTED, Cause.NOT_SUPPORTED, "out of its GPUClass", id="not supported"),
        pytest.param("lost", 1, Cause.LOST, "reset the GPU", id="lost"),
        pytest.param("fail_power", 999, Cause.OTHER, "driver's log", id="unknown"),
    ],
)
def test_a_refusal_names_gpu_wish_cause_and_the_next_step(
    driver: FakeNvml, devices: NvmlDevices, field: str, code: int, cause: Cause, step: str
) -> None:
    setattr(driver["GPU-a"], field, code)

    with pytest.raises(DeviceError) as refused:
        devices.set_power_limit("GPU-a", 350_000)

    assert refused.value.cause is cause
    assert "GPU-a" in str(refused.value)
    assert step in str(refused.value)
    assert driver.limits()["GPU-a"] == (700, 0)


def test_without_a_driver_looking_fails_and_works_once_there_is_one(driver: FakeNvml, devices: NvmlDevices) -> None:
    driver.node.init_error = DRIVER_NOT_LOADED
    with pytest.raises(DeviceError) as refused:
        devices.observe()
    driver.node.init_error = 0

    assert refused.value.cause is Cause.NO_DRIVER
    assert len(devices.observe()) == 2
