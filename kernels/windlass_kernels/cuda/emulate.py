"""Run the device kernels on a CPU, thread by thread: their logic against the references, on machines without a GPU.

The sources are compiled with the machine's C++ compiler and host/emulator.h, which says what is emulated and what is
not. It is about a million times slower than a device. Every array sits against a page that nobody may touch, so an
access beyond an argument is an error that names block and thread instead of a wrong number.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from windlass_kernels import build
from windlass_kernels.cuda.device import DeviceArray, DeviceError
from windlass_kernels.cuda.schema import Array, Launch, Op, bind, describe_arrays, empty_outputs

FOLDER = Path(__file__).parent
FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",  # those that unroll loops
    "-U_FORTIFY_SOURCE",  # its check of long jumps knows one stack, fibers have many
)
ALIGNMENT = 16
ORDERS = {"forward": 0, "backward": 1, "warp by warp": 2, "random": 2463534242}


class EmulationError(RuntimeError):
    """A kernel did what a device forbids or would not survive; the message names block and thread."""


def run(
    op: Op,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, int] | None = None,
    *,
    order: str = "forward",
    library: ctypes.CDLL | None = None,
) -> tuple[Array, ...]:
    """The outputs of an op, newly allocated, those updated in place included; the inputs stay as they are.

    order    of the threads within a block between two barriers: a key of ORDERS
    library  where the kernel is; by default that of `load`
    Raises OpError for inputs that do not fit, EmulationError, or BuildError without a C++ compiler.
    """
    call = bind(op, describe_arrays(inputs), attributes or {})
    guarded = {name: _Guarded(array) for name, array in inputs.items()}
    fresh = dict(zip((argument.name for argument in op.outputs), empty_outputs(call), strict=True))
    outputs = [guarded[name] if name in op.in_place else _Guarded(array) for name, array in fresh.items()]
    addresses = [guarded[argument.name].address for argument in op.inputs]
    start(
        call.kernel, call.launch, [*addresses, *call.integers, *(output.address for output in outputs)], order, library
    )
    return tuple(output.array.copy() for output in outputs)


def start(
    kernel: str,
    launch: Launch,
    arguments: Sequence[int],
    order: str = "forward",
    library: ctypes.CDLL | None = None,
) -> None:
    """Run a kernel to its end: addresses of this process, and integers. Raises EmulationError."""
    library = library or load()
    values = (ctypes.c_uint64 * len(arguments))(*(argument & (2**64 - 1) for argument in arguments))
    grid = (ctypes.c_uint * 3)(*launch.grid)
    entry = ctypes.cast(getattr(library, kernel), ctypes.c_void_p)
    failure = library.windlass_emulate(
        entry, values, len(arguments), grid, launch.threads, launch.shared_bytes, ORDERS[order]
    )
    if failure is not None:
        raise EmulationError(f"{kernel}, threads {order}: {failure.decode()}")


class EmulatedRuntime:
    """This processor as a device; see `device.DeviceRuntime`. Launches are done when they return."""

    target = "host"
    stream = "the only one"

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        guarded = _Guarded(np.full(tuple(shape), 0, dtype))
        return DeviceArray(guarded.address, tuple(shape), dtype, guarded)

    def write(self, array: DeviceArray, data: Array) -> None:
        self._memory(array)[...] = data

    def read(self, array: DeviceArray) -> Array:
        return self._memory(array).copy()

    def load(self, code: bytes, kernel: str) -> Any:  # noqa: ARG002  one library has them all
        return kernel

    def launch(
        self,
        kernel: Any,
        launch: Launch,
        inputs: Sequence[int],
        integers: Sequence[int],
        outputs: Sequence[int],
        stream: Any,  # noqa: ARG002  there is one
    ) -> None:
        start(kernel, launch, [*inputs, *integers, *outputs])

    def record(self, stream: Any) -> Any:  # noqa: ARG002
        return time.perf_counter()

    def elapsed_ms(self, first: Any, second: Any) -> float:
        return float(second - first) * 1e3

    def capture(self, work: Callable[[Any], None]) -> Callable[[], None]:
        return lambda: work(self.stream)

    def synchronize(self) -> None:
        return

    def _memory(self, array: DeviceArray) -> Array:
        if not isinstance(array.owner, _Guarded):
            raise DeviceError(f"expected an array of this runtime, found one of {type(array.owner).__name__}")
        return array.owner.array


class _Guarded:
    """A copy of an array whose last byte, but for alignment, is followed by memory that faults."""

    def __init__(self, source: Array) -> None:
        size = -(-source.nbytes // ALIGNMENT) * ALIGNMENT
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
        start = np.frombuffer(self._memory, np.uint8).ctypes.data
        _protect(start + pages, mmap.PAGESIZE)
        self.address = start + pages - size
        flat = np.frombuffer(self._memory, np.uint8, source.nbytes, pages - size)
        self.array: Array = flat.view(source.dtype).reshape(source.shape)
        self.array[...] = source


def _protect(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect failed")


@functools.cache
def load() -> ctypes.CDLL:
    """The device kernels, compiled for some seconds if the cache of `build` lacks them. Raises BuildError."""
    return compile_library(sorted(FOLDER.glob("*.cu")))


def compile_library(units: Sequence[Path]) -> ctypes.CDLL:
    """Kernels of any sources that include device.cuh. Raises BuildError."""
    compiler = build.find_compiler()
    headers = sorted([*FOLDER.glob("*.cuh"), *(FOLDER / "host").glob("emulator.*")])
    digest = hashlib.sha256(repr((compiler, FLAGS)).encode())
    for source in [*units, *headers]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    library = build.cache_folder() / f"windlass_emulated-{digest.hexdigest()[:24]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as work:
            os.replace(_compile(compiler, [*units, FOLDER / "host" / "emulator.cpp"], Path(work)), library)
    loaded = ctypes.CDLL(str(library))
    loaded.windlass_emulate.restype = ctypes.c_char_p
    return loaded


def _compile(compiler: tuple[str, ...], units: list[Path], work: Path) -> Path:
    def compile_unit(unit: Path) -> str:
        target = str(work / f"{unit.stem}.o")
        _run((*compiler, *FLAGS, f"-I{FOLDER}", "-x", "c++", "-c", str(unit), "-o", target))
        return target

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        objects = list(executor.map(compile_unit, units))
    library = work / "emulated.so"
    _run((*compiler, "-shared", "-o", str(library), *objects))
    return library


def _run(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=build.TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise build.BuildError(f"{command[0]} failed on the device kernels: {done.stderr[:2000]}")
