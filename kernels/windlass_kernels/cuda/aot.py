"""Registry entries as TensorRT plugins whose kernels are compiled ahead of time and live in the plan.

For the full `tensorrt` package; `tensorrt_rtx` has no plugins. The caller brings the two modules, so this one imports
no TensorRT and is tested without its libraries. A plan with such plugins runs without Python. Dimensions may be dynamic
where the kernel takes any (tokens, sequences); their bounds, such as 8 tokens, are the affair of the optimisation
profile. Packed codes are INT8 there, for plugins know no unsigned bytes. An op that updates arrays in place needs the
preview feature of aliased plugin outputs. Not yet run on a GPU.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from windlass_kernels.cuda.registry import OPS
from windlass_kernels.cuda.schema import Op, OpError, evaluate_dimension

NAMESPACE = "windlass"
_TYPES = {"float16": "float16", "float32": "float32", "int8": "int8", "uint8": "int8", "int32": "int32"}


def register(
    trt: Any, plugin: Any, ptx_of: Callable[[str], bytes], ops: Iterable[Op] = OPS.values()
) -> tuple[str, ...]:
    """Make ops known as `windlass::NAME`; returns the names. What is known already stays as it is.

    trt, plugin  `tensorrt` and `tensorrt.plugin`
    ptx_of       PTX of a source by its name, as `compile.compile_unit(name, compile.PORTABLE)` gives it
    """
    names = []
    for op in ops:
        names.append(f"{NAMESPACE}::{op.name}")
        if hasattr(getattr(plugin.op, NAMESPACE, None), op.name):
            continue
        plugin.register(names[-1], lazy_register=True)(_describe_function(trt, plugin, op))
        plugin.aot_impl(names[-1])(_kernel_function(plugin, op, ptx_of))
    return tuple(names)


def describe_outputs(
    trt: Any, plugin: Any, op: Op, inputs: Sequence[Any], attributes: Mapping[str, int]
) -> tuple[Any, ...]:
    """The outputs of an op for descriptors of its inputs, in order. Raises OpError for inputs that cannot be."""
    by_name = dict(zip((argument.name for argument in op.inputs), inputs, strict=True))
    _check_types(trt, op, inputs)
    known = all(not dimension.is_fake for one in inputs for dimension in one.shape_expr)
    sizes = _sizes(op, inputs, attributes) if known else {}
    described = []
    for argument in op.outputs:
        if argument.name in op.in_place:
            described.append(by_name[argument.name].aliased())
            continue
        # While types alone are asked for, no dimension has a value; any of them stands for all.
        shape = tuple(
            evaluate_dimension(dimension, sizes) if known else inputs[0].shape_expr[0] for dimension in argument.shape
        )
        described.append(plugin.from_shape_expr(tuple(map(_plain, shape)), _type(trt, argument.dtype)))
    return tuple(described)


def choose_kernel(plugin: Any, op: Op, inputs: Sequence[Any], attributes: Mapping[str, int]) -> tuple[str, Any, Any]:
    """Entry function, launch and integers, as TensorRT's own objects. Raises OpError for inputs that cannot be."""
    sizes = _sizes(op, inputs, attributes)
    launch = op.launch(sizes)
    parameters = plugin.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y, parameters.grid_z = map(_plain, launch.grid)
    parameters.block_x, parameters.shared_mem = launch.threads, _plain(launch.shared_bytes)
    integers = plugin.SymIntExprs(len(op.integers))
    for index, name in enumerate(op.integers):
        integers[index] = plugin.SymInt32(_plain(sizes[name]))
    return op.kernel(sizes), parameters, integers


class _Symbol:
    """A dimension known later: what `launch` may do with a size, in TensorRT's expressions."""

    def __init__(self, expression: Any) -> None:
        self.expression = expression

    def __add__(self, other: Any) -> _Symbol:
        return _Symbol(self.expression + _plain(other))

    def __mul__(self, other: Any) -> _Symbol:
        return _Symbol(self.expression * _plain(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> _Symbol:
        return _Symbol(self.expression // _plain(other))


def _plain(value: Any) -> Any:
    return value.expression if isinstance(value, _Symbol) else value


def _sizes(op: Op, inputs: Sequence[Any], attributes: Mapping[str, int]) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(attributes)
    for argument, described in zip(op.inputs, inputs, strict=True):
        for name, dimension in zip(argument.shape, described.shape_expr, strict=True):
            if name.isidentifier():
                value = dimension.constant_value() if dimension.is_constant else _Symbol(dimension)
                # A plain number from any input decides; symbols of one name are equal by contract.
                if name not in sizes or isinstance(sizes[name], _Symbol):
                    sizes[name] = value
    try:
        for name, derive in op.derived.items():
            sizes[name] = derive(sizes)
        # The least value stands for what is known later.
        assumed = {name: 1 if isinstance(value, _Symbol) else value for name, value in sizes.items()}
        broken = [limit.text for limit in op.limits if not limit.holds(assumed)]
    except TypeError as exc:
        dynamic = sorted(name for name, value in sizes.items() if isinstance(value, _Symbol))
        raise OpError(f"{op.name}: expected known sizes but for tokens and sequences, found dynamic {dynamic}") from exc
    if broken:
        raise OpError(f"{op.name}: expected {broken[0]}, found {assumed}")
    return sizes


def _check_types(trt: Any, op: Op, inputs: Sequence[Any]) -> None:
    for argument, described in zip(op.inputs, inputs, strict=True):
        if described.dtype != _type(trt, argument.dtype):
            raise OpError(f"{op.name}: expected {argument}, found {described.dtype}")


def _type(trt: Any, dtype: str) -> Any:
    return getattr(trt, _TYPES[dtype])


def _parameters(plugin: Any, op: Op) -> list[inspect.Parameter]:
    kinds = [(argument.name, plugin.TensorDesc) for argument in op.inputs] + [(name, int) for name in op.attributes]
    return [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
        for name, annotation in kinds
    ]


def _outputs_type(plugin: Any, op: Op) -> types.GenericAlias:
    return types.GenericAlias(tuple, (plugin.TensorDesc,) * len(op.outputs))


def _describe_function(trt: Any, plugin: Any, op: Op) -> Callable[..., Any]:
    """What TensorRT asks for outputs; its signature is read, so it is made to measure."""

    def describe(*arrays: Any, **attributes: int) -> tuple[Any, ...]:
        return describe_outputs(trt, plugin, op, arrays, attributes)

    describe.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        _parameters(plugin, op), return_annotation=_outputs_type(plugin, op)
    )
    return describe


def _kernel_function(plugin: Any, op: Op, ptx_of: Callable[[str], bytes]) -> Callable[..., Any]:
    """What TensorRT asks for code: arrays, attributes, outputs and tactic, all by position."""

    def implement(*arguments: Any) -> tuple[str, bytes, Any, Any]:
        arrays, values = arguments[: len(op.inputs)], arguments[len(op.inputs) : -2]
        kernel, launch, integers = choose_kernel(plugin, op, arrays, dict(zip(op.attributes, values, strict=True)))
        return kernel, ptx_of(op.source), launch, integers

    by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD
    outputs = inspect.Parameter("outputs", by_position, annotation=_outputs_type(plugin, op))
    tactic = inspect.Parameter("tactic", by_position, annotation=int)
    returned = types.GenericAlias(tuple, (str | bytes, str | bytes, plugin.KernelLaunchParams, plugin.SymIntExprs))
    implement.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*_parameters(plugin, op), outputs, tactic], return_annotation=returned
    )
    return implement
