"""The plugin glue against TensorRT's real Python bindings: their checks of signatures, their expressions, their types.

The bindings' wheel holds no TensorRT, so empty libraries stand in for it; nothing that would need them is called.
"""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from windlass_kernels import build
from windlass_kernels.cuda import aot, products, registry, samples
from windlass_kernels.cuda.schema import Op, OpError, bind, describe_arrays

FUNCTIONS = (
    *(f"create{name}_INTERNAL" for name in ("InferBuilder", "InferRefitter", "InferRuntime")),
    *(f"createNvOnnxParser{name}_INTERNAL" for name in ("", "Refitter")),
    *("getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
SAMPLES = {sample.op.name: sample for sample in samples.build_small(seed=0)}


class Later(int):
    """A number that stands for one that is known later."""


@dataclass(frozen=True)
class Expression:
    """A dimension as the builder would make it."""

    value: int
    constant: bool

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        return self.value


class ExpressionBuilder:
    """Stands in for TensorRT's, which exists only while a network is built."""

    def __init__(self, trt: Any) -> None:
        kinds = trt.DimensionOperation
        self._operations = {kinds.SUM: int.__add__, kinds.PROD: int.__mul__, kinds.FLOOR_DIV: int.__floordiv__}

    def constant(self, value: int) -> Expression:
        return Expression(int(value), constant=not isinstance(value, Later))

    def operation(self, kind: Any, first: Expression, second: Expression) -> int:
        """A number, which the bindings hand to `constant`: their own class of expressions cannot be made in Python."""
        value = self._operations[kind](first.value, second.value)
        return value if first.constant and second.constant else Later(value)


@pytest.fixture(scope="module")
def trt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`tensorrt` as the bindings' wheel gives it."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = folder / f"lib{name}.so.11"
        command = [*build.find_compiler(), "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
        subprocess.run([*command, "-o", str(library), str(folder / "stub.c")], check=True, timeout=60)
        ctypes.CDLL(str(library))  # its symbols stay its own: TensorRT-RTX has others of these names
    before = sys.modules.get("tensorrt")
    sys.modules["tensorrt"] = module = importlib.import_module("tensorrt_bindings")
    yield module
    del sys.modules["tensorrt"]
    if before is not None:
        sys.modules["tensorrt"] = before


@pytest.fixture(scope="module")
def plugin(trt: Any) -> Any:
    return importlib.import_module("tensorrt_bindings.plugin")


@pytest.fixture
def building(trt: Any, plugin: Any) -> Iterator[None]:
    """As while a network is built: expressions have values."""
    kind = plugin.SymInt32.__mro__[1]
    kind._exprBuilder = ExpressionBuilder(trt)
    yield
    kind._exprBuilder = None


def describe(trt: Any, plugin: Any, op: Op, dynamic: tuple[str, ...] = (), **shapes: tuple[int, ...]) -> list[Any]:
    """Descriptors of the inputs of the op's sample; dimensions named `dynamic` are known later."""
    found = []
    for argument in op.inputs:
        shape = shapes.get(argument.name, SAMPLES[op.name].inputs[argument.name].shape)
        expressions = plugin.ShapeExprs(len(shape))
        for index, size in enumerate(shape):
            expressions[index] = plugin.ShapeExpr(Later(size) if argument.shape[index] in dynamic else size)
        found.append(plugin.from_shape_expr(expressions, aot._type(trt, argument.dtype)))
    return found


def values(parameters: Any) -> list[int]:
    names = ("grid_x", "grid_y", "grid_z", "block_x", "shared_mem")
    return [getattr(parameters, name)._expr.value for name in names]


def test_every_op_passes_the_checks_that_the_bindings_make_of_a_plugin(trt: Any, plugin: Any) -> None:
    names = aot.register(trt, plugin, lambda _: b"")

    assert set(names) == {f"windlass::{name}" for name in registry.OPS}
    assert all(hasattr(plugin.op.windlass, name) for name in registry.OPS)


def test_registering_twice_is_the_same_as_once(trt: Any, plugin: Any) -> None:
    assert aot.register(trt, plugin, lambda _: b"") == aot.register(trt, plugin, lambda _: b"")


@pytest.mark.usefixtures("building")
@pytest.mark.parametrize("op", registry.OPS.values(), ids=lambda op: op.name)
def test_a_plugin_launches_what_a_direct_launch_would(trt: Any, plugin: Any, op: Op) -> None:
    sample = SAMPLES[op.name]
    call = bind(op, describe_arrays(sample.inputs), sample.attributes)
    inputs = describe(trt, plugin, op)

    kernel, launch, integers = aot.choose_kernel(plugin, op, inputs, sample.attributes)
    outputs = aot.describe_outputs(trt, plugin, op, inputs, sample.attributes)

    assert kernel == call.kernel
    assert values(launch) == [*call.launch.grid, call.launch.threads, call.launch.shared_bytes]
    assert [integer._expr.value for integer in integers] == list(call.integers)
    shapes = [tuple(dimension._expr.value for dimension in output.shape_expr) for output in outputs]
    assert shapes == list(call.output_shapes)
    assert [output.is_aliased for output in outputs] == [argument.name in op.in_place for argument in op.outputs]


@pytest.mark.usefixtures("building")
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        ("gemv_int4", "M"),
        ("rms_norm_quantize", "M"),
        ("paged_attention", "R"),
        ("attention_merge", "R"),
        ("kv_write", "T"),
    ],
)
def test_tokens_and_sequences_may_be_known_later(trt: Any, plugin: Any, name: str, dynamic: str) -> None:
    op, sample = registry.find(name), SAMPLES[name]
    call = bind(op, describe_arrays(sample.inputs), sample.attributes)

    kernel, launch, integers = aot.choose_kernel(plugin, op, describe(trt, plugin, op, (dynamic,)), sample.attributes)

    assert kernel == call.kernel
    assert values(launch) == [*call.launch.grid, call.launch.threads, call.launch.shared_bytes]
    assert [integer._expr.value for integer in integers] == list(call.integers)
    constant = [getattr(launch, axis)._expr.constant for axis in ("grid_x", "grid_y", "grid_z")]
    if dynamic in op.integers:
        assert not integers[op.integers.index(dynamic)]._expr.constant
    else:
        assert not all(constant)


@pytest.mark.usefixtures("building")
def test_a_size_that_chooses_the_kernel_must_be_known(trt: Any, plugin: Any) -> None:
    inputs = describe(trt, plugin, products.GEMV_INT4, ("K", "G"))

    with pytest.raises(OpError, match=r"gemv_int4: expected known sizes .* found dynamic \['G', 'K'\]"):
        aot.choose_kernel(plugin, products.GEMV_INT4, inputs, {})


@pytest.mark.usefixtures("building")
def test_sizes_beyond_the_limits_are_refused_while_the_network_is_built(trt: Any, plugin: Any) -> None:
    inputs = describe(trt, plugin, products.GEMV_INT8, x=(1, 100), codes=(40, 100))

    with pytest.raises(OpError, match="gemv_int8: expected a number of columns"):
        aot.choose_kernel(plugin, products.GEMV_INT8, inputs, {})


def test_types_are_known_before_shapes_are(trt: Any, plugin: Any) -> None:
    op = products.GEMV_INT4
    inputs = [
        plugin.from_shape_expr(plugin.ShapeExprs(2, _is_dummy=True), aot._type(trt, one.dtype)) for one in op.inputs
    ]

    (output,) = aot.describe_outputs(trt, plugin, op, inputs, {})

    assert output.dtype == trt.float16
    assert len(output.shape_expr) == 2


def test_an_input_of_another_type_is_refused(trt: Any, plugin: Any) -> None:
    op = products.GEMV_INT8
    inputs = [
        plugin.from_shape_expr(plugin.ShapeExprs(len(one.shape), _is_dummy=True), trt.float32) for one in op.inputs
    ]

    with pytest.raises(OpError, match=r"gemv_int8: expected x \[M, K\] float16, found DataType.FLOAT"):
        aot.describe_outputs(trt, plugin, op, inputs, {})
