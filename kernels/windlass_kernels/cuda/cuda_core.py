"""The runtime of direct launches on a GPU, through NVIDIA's cuda.core. Not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from windlass_kernels.cuda.device import DeviceArray, DeviceError
from windlass_kernels.cuda.schema import Array, Launch


class CudaRuntime:
    """A device by number. Give it the handle of a foreign stream, such as torch's, to launch in that one's order."""

    def __init__(self, index: int = 0, stream_handle: int | None = None) -> None:
        """Raises DeviceError without the `gpu` extra, a driver or that device."""
        try:
            from cuda import core
            from cuda.bindings import driver
        except ImportError as exc:
            raise DeviceError(f"cuda.core cannot be loaded ({exc}); pip install 'windlass[gpu]'") from exc
        self._core, self._driver = core, driver
        try:
            self._device = core.Device(index)
            self._device.set_current()
        # The driver's absence has no type of its own: depending on the version it is any of these.
        except (RuntimeError, ImportError, OSError) as exc:
            raise DeviceError(f"device {index}: expected a CUDA device with its driver, found none: {exc}") from exc
        self._stream = self._device.create_stream() if stream_handle is None else core.Stream.from_handle(stream_handle)

    @property
    def target(self) -> str:
        major, minor = self._device.compute_capability
        return f"sm_{major}{minor}"

    @property
    def stream(self) -> Any:
        return self._stream

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = self._device.allocate(max(size, 1), stream=self._stream)
        return DeviceArray(int(buffer.handle), tuple(shape), dtype, buffer)

    def write(self, array: DeviceArray, data: Array) -> None:
        source = np.ascontiguousarray(data)
        self._check(
            self._driver.cuMemcpyHtoDAsync(array.address, source.ctypes.data, source.nbytes, self._handle), "copy in"
        )
        self.synchronize()

    def read(self, array: DeviceArray) -> Array:
        result = np.empty(array.shape, array.dtype)
        self._check(
            self._driver.cuMemcpyDtoHAsync(result.ctypes.data, array.address, result.nbytes, self._handle), "copy out"
        )
        self.synchronize()
        return result

    def load(self, code: bytes, kernel: str) -> Any:
        return self._core.ObjectCode.from_cubin(code).get_kernel(kernel)

    def launch(
        self,
        kernel: Any,
        launch: Launch,
        inputs: Sequence[int],
        integers: Sequence[int],
        outputs: Sequence[int],
        stream: Any,
    ) -> None:
        config = self._core.LaunchConfig(grid=launch.grid, block=launch.threads, shmem_size=launch.shared_bytes)
        self._core.launch(stream, config, kernel, *inputs, *map(np.int32, integers), *outputs)

    def record(self, stream: Any) -> Any:
        return stream.record(options=self._core.EventOptions(timing_enabled=True))

    def elapsed_ms(self, first: Any, second: Any) -> float:
        second.sync()
        return float(second - first)

    def capture(self, work: Callable[[Any], None]) -> Callable[[], None]:
        builder = self._device.create_graph_builder().begin_building()
        work(builder)
        graph = builder.end_building().complete()
        return lambda: graph.launch(self._stream)

    def synchronize(self) -> None:
        self._stream.sync()

    @property
    def _handle(self) -> int:
        return int(self._stream.handle)

    def _check(self, result: tuple[Any, ...], what: str) -> None:
        if int(result[0]):
            raise DeviceError(f"{what} failed: {result[0]}")
