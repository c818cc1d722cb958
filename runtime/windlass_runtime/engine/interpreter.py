"""Compute a graph in NumPy: what a plan of it must answer, without TensorRT and without a GPU.

Slow and plain. Floats are held as FP32 and rounded to the format of each value, so FP16 and BF16 networks lose here
what they lose on a device, up to the order of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_runtime.engine import graph as g
from windlass_runtime.engine.weights import WeightSource

Array = npt.NDArray[Any]

_BINARY: Final[Mapping[g.Binary, Callable[[Array, Array], Array]]] = {
    g.Binary.ADD: np.add,
    g.Binary.SUBTRACT: np.subtract,
    g.Binary.MULTIPLY: np.multiply,
    g.Binary.GREATER: np.greater,
    g.Binary.LESS: np.less,
    g.Binary.AND: np.logical_and,
}
_UNARY: Final[Mapping[g.Function, Callable[[Array], Array]]] = {
    g.Function.SQUARE_ROOT: np.sqrt,
    g.Function.RECIPROCAL: np.reciprocal,
    g.Function.SIGMOID: lambda x: 1.0 / (1.0 + np.exp(-x)),
}


class Interpreter:
    """One graph with its numbers."""

    def __init__(self, graph: g.Graph, source: WeightSource) -> None:
        self._graph = graph
        self._constants = {
            node.output.name: _held(source.read(node.op.source, node.output).float().numpy(), node.output.dtype)
            for node in graph.nodes
            if isinstance(node.op, g.Constant)
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Caches among the inputs are written in place, and handed on as outputs."""
        values: dict[str, Array] = {**self._constants, **inputs}
        for node in self._graph.nodes:
            if isinstance(node.op, g.Constant):
                continue
            result = _compute(node, [values[value.name] for value in node.inputs])
            # A cache is its own result: a rounded copy would part it from the caller's memory.
            values[node.output.name] = (
                result if isinstance(node.op, g.UpdateCache) else _held(result, node.output.dtype)
            )
        return {value.name: values[value.name] for value in self._graph.outputs}


def _held(array: Array, dtype: g.DType) -> Array:
    match dtype:
        case g.DType.FP16:
            return array.astype(np.float16).astype(np.float32)
        case g.DType.BF16:
            return _round_bfloat(array)
        case g.DType.FP32:
            return array.astype(np.float32)
        case g.DType.BOOL:
            return array.astype(np.bool_)
        case _:
            return array.astype(np.int32)


def _round_bfloat(array: Array) -> Array:
    """To the nearest number with 8 bits of mantissa, ties to even."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).reshape(array.shape)


def _compute(node: g.Node, inputs: list[Array]) -> Array:
    match node.op:
        case g.Cast():
            return inputs[0]
        case g.Quantize():
            return np.asarray(np.clip(np.rint(inputs[0] / inputs[1]), -128, 127))
        case g.Dequantize():
            return _dequantize(*inputs)
        case g.Gather(axis, batch_axes):
            return _gather(inputs[0], inputs[1], axis, batch_axes)
        case g.Product():
            return np.asarray(np.matmul(inputs[0], np.swapaxes(inputs[1], -1, -2)))
        case g.Elementwise(kind):
            return np.asarray(_BINARY[kind](*inputs))
        case g.Apply(function):
            return _UNARY[function](inputs[0])
        case g.Mean():
            return np.asarray(inputs[0].mean(axis=-1, keepdims=True))
        case g.Shuffle(before, reshape, after):
            return _shuffle(inputs[0], before, reshape, after)
        case g.Rotate(interleaved):
            return _rotate(*inputs, interleaved=interleaved)
        case g.UpdateCache():
            return _update(*inputs)
        case g.Attend(masked):
            return _attend(*inputs, masked=masked)
        case g.Constant():
            raise AssertionError(f"{node}: constants are read beforehand")


def _dequantize(codes: Array, scales: Array) -> Array:
    if scales.ndim == 1:
        scales = scales[:, None]
    elif scales.ndim == 2:
        scales = np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
    return np.asarray(codes * scales)


def _gather(data: Array, indices: Array, axis: int, batch_axes: int) -> Array:
    if not batch_axes:
        return np.asarray(np.take(data, indices, axis=axis))
    assert (axis, batch_axes) == (1, 1), "only the gather that the writer uses"
    return np.asarray(data[np.arange(len(data))[:, None], indices])


def _shuffle(data: Array, before: Any, reshape: tuple[int, ...], after: Any) -> Array:
    moved = data if before is None else data.transpose(before)
    sizes = [moved.shape[place] if size == 0 else size for place, size in enumerate(reshape)]
    shaped = moved.reshape(sizes)
    return shaped if after is None else shaped.transpose(after)


def _rotate(heads: Array, cos: Array, sin: Array, positions: Array, *, interleaved: bool) -> Array:
    c, s, half = cos[positions][:, None], sin[positions][:, None], cos.shape[1]
    result = heads.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    )
    a, b = heads[..., first], heads[..., second]
    result[..., first], result[..., second] = a * c - b * s, a * s + b * c
    return result


def _update(cache: Array, update: Array, first: Array) -> Array:
    tokens = update.shape[2]
    for row, start in enumerate(first):
        assert 0 <= start <= cache.shape[2] - tokens, f"row {row}: {start} + {tokens} exceeds {cache.shape[2]}"
        cache[row, :, start : start + tokens] = update[row]
    return cache


def _attend(query: Array, keys: Array, values: Array, visible: Array, *, masked: bool) -> Array:
    rows, heads, tokens, _ = query.shape
    positions = np.arange(keys.shape[2])
    if not masked:
        latest = np.arange(tokens)[None, :, None] + visible.reshape(rows, 1, 1) - tokens
        visible = (positions <= latest)[:, None]
    shared = heads // keys.shape[1]
    keys, values = np.repeat(keys, shared, axis=1), np.repeat(values, shared, axis=1)
    scores = np.where(visible, np.matmul(query, keys.swapaxes(-1, -2)), -math.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(np.matmul(weights / weights.sum(axis=-1, keepdims=True), values))
