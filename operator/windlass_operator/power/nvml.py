"""GPUs through NVML, NVIDIA's management library. The only module that loads it.

The library comes with the driver and is opened as `libnvidia-ml.so.1`; in a container NVIDIA's runtime mounts it.
Reading needs no rights. Writing needs CAP_SYS_ADMIN: the driver asks for it at each call, whoever the user is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Final, ParamSpec, TypeVar

import pynvml

from windlass_operator.power.devices import Cause, DeviceError, Gpu

P = ParamSpec("P")
T = TypeVar("T")

_CAUSES: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: Cause.NO_DRIVER,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: Cause.NO_DRIVER,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: Cause.NO_DRIVER,
    pynvml.NVML_ERROR_UNINITIALIZED: Cause.NO_DRIVER,
    pynvml.NVML_ERROR_NO_PERMISSION: Cause.NO_PERMISSION,
    pynvml.NVML_ERROR_NOT_SUPPORTED: Cause.NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: Cause.NOT_SUPPORTED,
    pynvml.NVML_ERROR_GPU_IS_LOST: Cause.LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: Cause.LOST,
    pynvml.NVML_ERROR_NOT_FOUND: Cause.LOST,
}
_NEXT_STEP: Final = {
    Cause.NO_DRIVER: "install the NVIDIA driver on this node, or keep the agent off it by its node selector",
    Cause.NO_PERMISSION: "give the container the capability SYS_ADMIN",
    Cause.NOT_SUPPORTED: "this GPU or driver does not offer it; take the limit out of its GPUClass",
    Cause.LOST: "reset the GPU or start the node anew",
    Cause.OTHER: "see the driver's log",
}
_NO_LOWER_END: Final = 0
"""A lock is a range; from 0 on it is a cap only."""


class NvmlDevices:
    """The GPUs of this node. Blocks. Not shared between threads."""

    def __init__(self) -> None:
        self._open = False

    def observe(self) -> tuple[Gpu, ...]:
        """Read every GPU; one that does not answer is left out. Raises DeviceError without a driver."""
        self._init()
        count = _call("number of GPUs", pynvml.nvmlDeviceGetCount)
        gpus = []
        for index in range(count):
            with contextlib.suppress(DeviceError):
                gpus.append(_read(index))
        return tuple(gpus)

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        _call(
            f"{uuid}: power limit of {milliwatts / 1000:g} W",
            pynvml.nvmlDeviceSetPowerManagementLimit,
            self._handle(uuid),
            milliwatts,
        )

    def cap_clock(self, uuid: str, mhz: int) -> None:
        _call(
            f"{uuid}: graphics clock up to {mhz} MHz",
            pynvml.nvmlDeviceSetGpuLockedClocks,
            self._handle(uuid),
            _NO_LOWER_END,
            mhz,
        )

    def free_clock(self, uuid: str) -> None:
        _call(f"{uuid}: free graphics clock", pynvml.nvmlDeviceResetGpuLockedClocks, self._handle(uuid))

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(DeviceError):
                _call("give the library back", pynvml.nvmlShutdown)

    def _init(self) -> None:
        if not self._open:
            _call("open libnvidia-ml.so.1", pynvml.nvmlInit)
            self._open = True

    def _handle(self, uuid: str) -> Any:
        self._init()
        return _call(f"find {uuid}", pynvml.nvmlDeviceGetHandleByUUID, uuid)


def _call(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call NVML and translate its errors. Raises DeviceError."""
    try:
        return function(*args, **kwargs)
    except pynvml.NVMLError as exc:
        cause = _CAUSES.get(exc.value, Cause.OTHER)
        raise DeviceError(f"{what}: {exc}; {_NEXT_STEP[cause]}", cause) from exc


def _read(index: int) -> Gpu:
    handle = _call(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index)
    ask = functools.partial(_optional, handle)
    low_mw, high_mw = ask(pynvml.nvmlDeviceGetPowerManagementLimitConstraints) or (None, None)
    use = ask(pynvml.nvmlDeviceGetUtilizationRates)
    return Gpu(
        uuid=_call(f"UUID of GPU {index}", pynvml.nvmlDeviceGetUUID, handle),
        index=index,
        power_limit_mw=ask(pynvml.nvmlDeviceGetPowerManagementLimit),
        min_power_mw=low_mw,
        max_power_mw=high_mw,
        max_clock_mhz=ask(pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_GRAPHICS),
        clock_mhz=ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_GRAPHICS),
        draw_mw=ask(pynvml.nvmlDeviceGetPowerUsage),
        energy_mj=ask(pynvml.nvmlDeviceGetTotalEnergyConsumption),
        use_percent=None if use is None else int(use.gpu),
        slices=tuple(_slices(handle)),
    )


def _optional(handle: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Return None where this GPU does not report it. A lost GPU raises DeviceError."""
    try:
        return _call("read", function, handle, *args)
    except DeviceError as exc:
        if exc.cause is Cause.LOST:
            raise
        return None


def _slices(handle: Any) -> Iterator[str]:
    """Yield the UUIDs of MIG devices; their numbers may have gaps."""
    for number in range(_optional(handle, pynvml.nvmlDeviceGetMaxMigDeviceCount) or 0):
        with contextlib.suppress(DeviceError):
            part = _call("MIG device", pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            yield _call("UUID of a MIG device", pynvml.nvmlDeviceGetUUID, part)
