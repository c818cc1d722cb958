"""A driver without GPUs: a real shared library that the real `nvidia-ml-py` loads, over a file that tests see into."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"
VARIABLE = "WINDLASS_FAKE_NVML"
NO_PERMISSION = 4
NOT_SUPPORTED = 3
DRIVER_NOT_LOADED = 9
_MAX_GPUS, _MAX_SLICES, _UUID_BYTES = 8, 4, 64


class FakeGpu(ctypes.Structure):
    """One GPU; reads and writes go to the file at once."""

    _fields_ = (
        ("uuid", ctypes.c_char * _UUID_BYTES),
        ("slices", (ctypes.c_char * _UUID_BYTES) * _MAX_SLICES),
        ("energy_mj", ctypes.c_uint64),
        *(
            (name, ctypes.c_uint32)
            for name in (
                "limit_mw",
                "min_mw",
                "max_mw",
                "draw_mw",
                "clock_mhz",
                "max_clock_mhz",
                "cap_mhz",
                "use_percent",
            )
        ),
        *((name, ctypes.c_int32) for name in ("fail_power", "fail_cap", "fail_free", "lost", "no_energy", "writes")),
    )


class _Node(ctypes.Structure):
    _fields_ = (("init_error", ctypes.c_int32), ("count", ctypes.c_int32), ("gpus", FakeGpu * _MAX_GPUS))


class FakeNvml:
    """The state of a node's GPUs: 200 to 700 W, found at 700 W, graphics clock up to 1980 MHz."""

    def __init__(self, path: Path, uuids: Iterable[str]) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Node)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.node = _Node.from_buffer(self._map)
        for uuid in uuids:
            gpu = self.node.gpus[self.node.count]
            gpu.uuid = uuid.encode()
            gpu.limit_mw, gpu.min_mw, gpu.max_mw, gpu.draw_mw = 700_000, 200_000, 700_000, 90_000
            gpu.clock_mhz, gpu.max_clock_mhz = 1755, 1980
            self.node.count += 1

    def __getitem__(self, uuid: str) -> FakeGpu:
        gpu: FakeGpu = next(gpu for gpu in self.node.gpus if gpu.uuid == uuid.encode())
        return gpu

    def limits(self) -> dict[str, tuple[int, int]]:
        """Power limit in watts and clock cap in MHz (0: none) of each GPU."""
        found = self.node.gpus[: self.node.count]
        return {gpu.uuid.decode(): (gpu.limit_mw // 1000, gpu.cap_mhz) for gpu in found}


def build_library(folder: Path) -> Path:
    """Compile the library into a folder for LD_LIBRARY_PATH; skips where there is no compiler, naming it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("missing binary: cc; install a C compiler")
    # Loaders find an open library by its soname, so one that is loaded first stands in for the driver's.
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*command, "-o", folder / LIBRARY, SOURCE], check=True, timeout=60)
    return folder
