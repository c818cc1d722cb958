"""What a device op is: its arguments, the kernel behind it, its launch, its meaning. Knows no device and no tensors.

A kernel's arguments are its inputs, then integers, then outputs; TensorRT's ahead-of-time plugins ask for that order,
and every other user keeps it. Sizes are named dimensions, solved from the shapes of the inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Sizes = Mapping[str, int]

_DIMENSION = re.compile(r"\w+(?:[*/]\w+)*")


class OpError(ValueError):
    """An op was given something it does not take; the message names op, argument, expectation and finding."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An array: contiguous, on one device. A dimension is a name, a number, or a product or quotient of such: `K/2`."""

    name: str
    dtype: str
    """NumPy's name."""
    shape: tuple[str, ...]
    tolerance: float = 0.0
    """Of an output: how far it may lie from the reference, as a share of the reference's largest value, or of 1."""

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(self.shape)}] {self.dtype}"


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started. For TensorRT the sizes may be expressions of shapes that are known later."""

    grid: tuple[Any, Any, Any]
    threads: int
    shared_bytes: Any


@dataclass(frozen=True, slots=True)
class Limit:
    """What sizes must satisfy beyond fitting each other."""

    text: str
    holds: Callable[[Sizes], bool]


@dataclass(frozen=True, slots=True)
class Op:
    """One registry entry. TensorRT, direct launches and tests all read it."""

    name: str
    source: str
    """File beside this module."""
    summary: str
    inputs: tuple[Argument, ...]
    integers: tuple[str, ...]
    """Dimensions and attributes, in the kernel's order."""
    outputs: tuple[Argument, ...]
    kernel: Callable[[Sizes], str]
    """Name of the entry function."""
    launch: Callable[[Mapping[str, Any]], Launch]
    """From sizes; sums, products and whole quotients only, for sizes may be symbolic. `divide_up` is such."""
    reference: Callable[..., tuple[Array, ...]]
    """NumPy, float64 inside: the inputs by name and the attributes by keyword, to the outputs."""
    traffic: Callable[[Sizes], int]
    """Bytes that must cross device memory once."""
    attributes: tuple[str, ...] = ()
    """Integers that no shape tells."""
    limits: tuple[Limit, ...] = ()
    derived: Mapping[str, Callable[[Sizes], int]] = field(default_factory=dict)
    """Integers that follow from others."""
    in_place: tuple[str, ...] = ()
    """Outputs that are the inputs of the same name, updated."""
    lowering: str | None = None
    """The layers that TensorRT would run instead, where it has any that give the same result."""

    def input(self, name: str) -> Argument:
        return next(argument for argument in self.inputs if argument.name == name)


@dataclass(frozen=True, slots=True)
class Call:
    """An op bound to arrays of given shapes."""

    op: Op
    kernel: str
    sizes: Sizes
    integers: tuple[int, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    launch: Launch


def divide_up(value: Any, by: int) -> Any:
    """The quotient of a size, known or symbolic, rounded up."""
    return (value + (by - 1)) // by


def bind(op: Op, arrays: Mapping[str, tuple[Sequence[int], str]], attributes: Mapping[str, int]) -> Call:
    """Check everything about a call that shapes tell. `arrays` has shape and type of each input. Raises OpError."""
    _require_names(op, "inputs", [argument.name for argument in op.inputs], arrays)
    _require_names(op, "attributes", op.attributes, attributes)
    sizes = dict(attributes)
    for argument in op.inputs:
        shape, dtype = arrays[argument.name]
        if dtype != argument.dtype or len(shape) != len(argument.shape):
            raise OpError(f"{op.name}: expected {argument}, found {list(shape)} {dtype}")
        for dimension, found in zip(argument.shape, shape, strict=True):
            if dimension.isidentifier():
                sizes.setdefault(dimension, found)
    for name, derive in op.derived.items():
        sizes[name] = derive(sizes)
    for argument in op.inputs:
        shape, dtype = arrays[argument.name]
        expected = shape_of(argument, sizes)
        if expected != tuple(shape):
            raise OpError(f"{op.name}: expected {argument} = {list(expected)}, found {list(shape)} {dtype}")
    for limit in op.limits:
        if not limit.holds(sizes):
            raise OpError(f"{op.name}: expected {limit.text}, found {_describe(sizes)}")
    integers = tuple(sizes[name] for name in op.integers)
    outputs = tuple(shape_of(argument, sizes) for argument in op.outputs)
    return Call(op, op.kernel(sizes), sizes, integers, outputs, op.launch(sizes))


def shape_of(argument: Argument, sizes: Sizes) -> tuple[int, ...]:
    """Its shape for known sizes. A quotient that does not come out whole matches no array."""
    return tuple(evaluate_dimension(dimension, sizes) for dimension in argument.shape)


def describe_arrays(arrays: Mapping[str, Array]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each, as `bind` takes them."""
    return {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}


def empty_outputs(call: Call) -> tuple[Array, ...]:
    """Arrays for the results, in order, full of bytes that no op writes by chance."""
    made = []
    for argument, shape in zip(call.op.outputs, call.output_shapes, strict=True):
        array = np.empty(shape, argument.dtype)
        array.view(np.uint8).fill(0xA5)
        made.append(array)
    return tuple(made)


def find_differences(op: Op, outputs: Sequence[Array], expected: Sequence[Array]) -> list[str]:
    """What is wrong with results, a sentence an output; empty if nothing is. NaN in the reference allows anything."""
    wrong = []
    for argument, found, truth in zip(op.outputs, outputs, expected, strict=True):
        known = ~np.isnan(truth) if truth.dtype.kind == "f" else np.ones(truth.shape, bool)
        wide, true = found[known].astype(np.float64), truth[known].astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = np.where(wide == true, 0.0, np.abs(wide - true))  # infinities that agree
        size = max(1.0, float(np.abs(true[np.isfinite(true)]).max(initial=0.0)))
        worst = float(error.max(initial=0.0))
        if not worst <= argument.tolerance * size:
            wrong.append(f"{op.name}: {argument.name} is off by {worst:.3g}, allowed {argument.tolerance * size:.3g}")
    return wrong


def evaluate_dimension(dimension: str, sizes: Mapping[str, Any]) -> Any:
    """Its value; -1, which no array has, for a quotient of numbers that is not whole."""
    if not _DIMENSION.fullmatch(dimension):
        raise ValueError(f"dimension {dimension!r} is no name, number, product or quotient")
    atoms = re.findall(r"([*/]?)(\w+)", dimension)
    value = _atom(atoms[0][1], sizes)
    for operator, atom in atoms[1:]:
        factor = _atom(atom, sizes)
        if operator == "*":
            value = value * factor
        elif isinstance(value, int) and (factor == 0 or value % factor):
            return -1
        else:
            value = value // factor
    return value


def _atom(text: str, sizes: Mapping[str, Any]) -> Any:
    return int(text) if text.isdigit() else sizes[text]


def _require_names(op: Op, what: str, expected: Sequence[str], found: Mapping[str, Any]) -> None:
    if set(expected) != set(found):
        raise OpError(f"{op.name}: expected {what} {sorted(expected)}, found {sorted(found)}")


def _describe(sizes: Sizes) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sizes.items())
