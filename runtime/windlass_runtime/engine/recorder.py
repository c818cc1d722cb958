"""Write a graph node by node: every method checks types as TensorRT would, and says what its result is."""

from __future__ import annotations

from dataclasses import dataclass, field

from windlass_runtime.engine.graph import (
    Apply,
    Attend,
    Binary,
    Cast,
    Constant,
    Dequantize,
    Dim,
    DType,
    Elementwise,
    Function,
    Gather,
    Graph,
    Mean,
    Node,
    Op,
    Product,
    Quantize,
    Rotate,
    Shape,
    Shuffle,
    Source,
    UpdateCache,
    Value,
)


@dataclass(slots=True)
class Recorder:
    """Collects nodes. Every method adds one and returns its output; AssertionError where types do not fit."""

    _inputs: list[Value] = field(default_factory=list)
    _nodes: list[Node] = field(default_factory=list)
    _outputs: list[Value] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def input(self, name: str, dtype: DType, shape: Shape) -> Value:
        value = self._name(name, dtype, shape)
        self._inputs.append(value)
        return value

    def output(self, value: Value) -> None:
        self._outputs.append(value)

    def constant(self, name: str, dtype: DType, shape: Shape, source: Source) -> Value:
        return self._add(name, Constant(source), (), dtype, shape)

    def cast(self, name: str, value: Value, dtype: DType) -> Value:
        return self._add(name, Cast(), (value,), dtype, value.shape)

    def quantize(self, name: str, value: Value, scale: Value) -> Value:
        assert scale.shape == (), f"{name}: {scale}"
        assert scale.dtype is value.dtype, f"{name}: {scale} for {value}"
        return self._add(name, Quantize(), (value, scale), DType.INT8, value.shape)

    def dequantize(self, name: str, codes: Value, scales: Value, dtype: DType) -> Value:
        assert codes.dtype in (DType.INT8, DType.INT4), f"{name}: {codes}"
        assert scales.dtype is dtype, f"{name}: scales {scales.dtype}, output {dtype}"
        return self._add(name, Dequantize(), (codes, scales), dtype, codes.shape)

    def gather(self, name: str, data: Value, indices: Value, axis: int, batch_axes: int = 0) -> Value:
        assert indices.dtype is DType.INT32, f"{name}: {indices}"
        shape = data.shape[:axis] + indices.shape[batch_axes:] + data.shape[axis + 1 :]
        return self._add(name, Gather(axis, batch_axes), (data, indices), data.dtype, shape)

    def product(self, name: str, first: Value, second: Value) -> Value:
        assert first.dtype is second.dtype, f"{name}: {first} by {second}"
        assert first.shape[-1] == second.shape[-1], f"{name}: {first} by {second}"
        assert len(first.shape) == len(second.shape), f"{name}: {first} by {second}"
        return self._add(name, Product(), (first, second), first.dtype, (*first.shape[:-1], second.shape[-2]))

    def elementwise(self, name: str, kind: Binary, first: Value, second: Value) -> Value:
        assert first.dtype is second.dtype, f"{name}: {first} and {second}"
        assert len(first.shape) == len(second.shape), f"{name}: {first} and {second}"
        shape = tuple(_broadcast(name, a, b) for a, b in zip(first.shape, second.shape, strict=True))
        dtype = DType.BOOL if kind in (Binary.GREATER, Binary.LESS) else first.dtype
        return self._add(name, Elementwise(kind), (first, second), dtype, shape)

    def apply(self, name: str, function: Function, value: Value) -> Value:
        return self._add(name, Apply(function), (value,), value.dtype, value.shape)

    def mean(self, name: str, value: Value) -> Value:
        return self._add(name, Mean(), (value,), value.dtype, (*value.shape[:-1], 1))

    def shuffle(
        self,
        name: str,
        value: Value,
        reshape: tuple[int, ...],
        shape: Shape,
        *,
        before: tuple[int, ...] | None = None,
        after: tuple[int, ...] | None = None,
    ) -> Value:
        """`shape` is the result's."""
        return self._add(name, Shuffle(before, reshape, after), (value,), value.dtype, shape)

    def rotate(
        self, name: str, heads: Value, tables: tuple[Value, Value], positions: Value, *, interleaved: bool
    ) -> Value:
        assert {table.dtype for table in tables} == {heads.dtype}, f"{name}: {tables} for {heads}"
        return self._add(name, Rotate(interleaved), (heads, *tables, positions), heads.dtype, heads.shape)

    def update_cache(self, name: str, cache: Value, update: Value, first: Value) -> Value:
        assert cache in self._inputs, f"{name}: {cache} is no input"
        assert cache.dtype is update.dtype, f"{name}: {cache}, {update}"
        assert first.dtype is DType.INT32, f"{name}: {first}"
        return self._add(name, UpdateCache(), (cache, update, first), cache.dtype, cache.shape)

    def attend(self, name: str, query: Value, keys: Value, values: Value, visible: Value) -> Value:
        """`visible` is a mask if it is BOOL, and lengths otherwise."""
        assert query.dtype is keys.dtype is values.dtype, f"{name}: {query}, {keys}, {values}"
        masked = visible.dtype is DType.BOOL
        return self._add(name, Attend(masked), (query, keys, values, visible), query.dtype, query.shape)

    def finish(self) -> Graph:
        return Graph(tuple(self._inputs), tuple(self._nodes), tuple(self._outputs))

    def _add(self, name: str, op: Op, inputs: tuple[Value, ...], dtype: DType, shape: Shape) -> Value:
        value = self._name(name, dtype, shape)
        self._nodes.append(Node(op, inputs, value))
        return value

    def _name(self, name: str, dtype: DType, shape: Shape) -> Value:
        assert name not in self._names, f"{name}: named twice"
        self._names.add(name)
        return Value(name, dtype, shape)


def _broadcast(name: str, first: Dim, second: Dim) -> Dim:
    assert first == second or 1 in (first, second), f"{name}: sizes {first} and {second}"
    return second if first == 1 else first
