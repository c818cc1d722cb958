"""Direct launches: arrays in device memory, the protocol of what runs them, and a launcher from registry entries.

Two runtimes exist: `cuda_core.CudaRuntime` on a GPU, and `emulate.EmulatedRuntime`, whose device is this processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from windlass_kernels.cuda.schema import Array, Call, Launch, Op, OpError, bind


class DeviceError(RuntimeError):
    """The device or its driver refused; the message says what was asked."""


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array in device memory. Whoever made it keeps `owner` alive, and with it the memory."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: object = None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class DeviceRuntime(Protocol):
    """One device and one current stream order. Kernels, streams, events and graphs are opaque to callers."""

    @property
    def target(self) -> str:
        """What to compile for, as `sm_90`."""

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Memory with any content. Raises DeviceError when there is none."""

    def write(self, array: DeviceArray, data: Array) -> None:
        """Copy to the device; done on return."""

    def read(self, array: DeviceArray) -> Array:
        """Copy from the device, newly allocated, after everything launched before."""

    def load(self, code: bytes, kernel: str) -> Any:
        """A kernel of compiled code."""

    def launch(
        self,
        kernel: Any,
        launch: Launch,
        inputs: Sequence[int],
        integers: Sequence[int],
        outputs: Sequence[int],
        stream: Any,
    ) -> None:
        """Start it; arguments in the order of the schema, arrays by address."""

    @property
    def stream(self) -> Any:
        """The stream that callers use who have none of their own."""

    def record(self, stream: Any) -> Any:
        """An event at this point of a stream."""

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Between two events, both of which have passed on return."""

    def capture(self, work: Callable[[Any], None]) -> Callable[[], None]:
        """What `work` launches on the stream it is given, to be replayed as often as wanted."""

    def synchronize(self) -> None:
        """Wait for everything. Raises DeviceError if something failed on the way."""


class Launcher:
    """Runs registry entries on a runtime; compiles and loads each kernel once."""

    def __init__(self, runtime: DeviceRuntime, compile_unit: Callable[[str, str], bytes]) -> None:
        """`compile_unit` gives code for a source's name and a target: `compile.compile_unit`."""
        self.runtime = runtime
        self._compile = compile_unit
        self._kernels: dict[str, Any] = {}

    def run(
        self,
        op: Op,
        inputs: Mapping[str, DeviceArray],
        attributes: Mapping[str, int] | None = None,
        outputs: Mapping[str, DeviceArray] | None = None,
        stream: Any = None,
    ) -> dict[str, DeviceArray]:
        """Launch; returns the outputs: those given, those updated in place, and new ones for the rest.

        Raises OpError for arrays that do not fit, CompileError, DeviceError.
        """
        call = bind(op, {name: (array.shape, array.dtype) for name, array in inputs.items()}, attributes or {})
        results = self._outputs(call, inputs, outputs or {})
        self.runtime.launch(
            self._kernel(call),
            call.launch,
            [inputs[argument.name].address for argument in op.inputs],
            call.integers,
            [array.address for array in results.values()],
            self.runtime.stream if stream is None else stream,
        )
        return results

    def _outputs(
        self, call: Call, inputs: Mapping[str, DeviceArray], given: Mapping[str, DeviceArray]
    ) -> dict[str, DeviceArray]:
        op, results = call.op, {}
        if unknown := set(given) - {argument.name for argument in op.outputs} | set(given) & set(op.in_place):
            raise OpError(f"{op.name}: expected outputs among those not updated in place, found {sorted(unknown)}")
        for argument, shape in zip(op.outputs, call.output_shapes, strict=True):
            if argument.name in op.in_place:
                results[argument.name] = inputs[argument.name]
                continue
            array = given.get(argument.name) or self.runtime.allocate(shape, argument.dtype)
            if (array.shape, array.dtype) != (shape, argument.dtype):
                raise OpError(
                    f"{op.name}: expected {argument} = {list(shape)}, found {list(array.shape)} {array.dtype}"
                )
            results[argument.name] = array
        return results

    def _kernel(self, call: Call) -> Any:
        if call.kernel not in self._kernels:
            code = self._compile(call.op.source, self.runtime.target)
            self._kernels[call.kernel] = self.runtime.load(code, call.kernel)
        return self._kernels[call.kernel]


def from_tensor(tensor: Any) -> DeviceArray:
    """A torch tensor as it lies in memory, not copied. Raises OpError unless it is contiguous."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not tensor.is_contiguous():
        raise OpError(f"device array: expected a contiguous tensor, found {list(tensor.shape)} {dtype} with gaps")
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, tensor)


def to_device(runtime: DeviceRuntime, arrays: Mapping[str, Array]) -> dict[str, DeviceArray]:
    """Copies of host arrays, by name."""
    copies = {}
    for name, array in arrays.items():
        copies[name] = runtime.allocate(array.shape, str(array.dtype))
        runtime.write(copies[name], array)
    return copies
