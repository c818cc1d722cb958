"""Write the network of a model: one path from a spec and a recipe's formats, for every family and both TensorRTs.

Choices that follow from what the builders accept and fuse (docs/designs/0005-the-engine.md says how they were found):
the residual and all norms are FP32 and everything between is `math`; a 4-bit table is expanded before rows are gathered
from it; weights of 8 bits have one scale a row, those of 4 bits one per block of columns; queries are scaled before
attention, which takes no scale of its own. Pure: knows names, formats and shapes, never numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.engine.graph import (
    Binary,
    DType,
    Field,
    Filled,
    FromModel,
    Function,
    Graph,
    Positions,
    RotaryTable,
    Turn,
    Value,
)
from windlass_runtime.engine.recorder import Recorder
from windlass_runtime.quant.formats import Format
from windlass_runtime.quant.recipe import TensorRecipe

NETWORK_VERSION = 1
"""Raised when the same spec and recipe give another network, so that older plans are built anew."""

TOKEN_IDS = "token_ids"
"""Input [B,S] INT32."""
POSITIONS = "positions"
"""Input [B,S] INT32: of each token in its sequence."""
FIRST_POSITIONS = "first_positions"
"""Input [B] INT32: where a row's keys and values are written; first_positions + S must not exceed the capacity."""
LENGTHS = "lengths"
"""Input [B] INT32: first_positions + S, also for rows that are padded to S."""
LAST_TOKENS = "last_tokens"
"""Input [B,1] INT32: index in the row of the token whose logits are wanted."""
LOGITS = "logits"
"""Output [B,1,V] FP32."""


def cache_names(layer: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """(input, output) of one layer's keys, and of its values: [B,H,T,D]; both of a pair lie at the same address."""
    return (f"keys.{layer}.in", f"keys.{layer}.out"), (f"values.{layer}.in", f"values.{layer}.out")


@dataclass(frozen=True, slots=True)
class _Projection:
    """A dense layer, or some rows of it."""

    tensor: str
    first: int
    stop: int
    columns: int
    has_bias: bool

    @property
    def weight(self) -> str:
        return f"{self.tensor}.weight"


def write_network(spec: ModelSpec, entries: Mapping[str, TensorRecipe], capacity: int, arithmetic: DType) -> Graph:
    """The decoder as a graph.

    entries     formats of the tensors that a recipe keeps in integers; others are kept in `arithmetic`
    capacity    T: positions of every sequence's cache
    arithmetic  FP16 or BF16; FP32 only for the interpreter
    """
    return NetworkWriter(spec, entries, capacity, arithmetic).write()


class NetworkWriter:
    """Writes one network. B rows, S tokens a row, E hidden size, Hq and H heads, D head size, T capacity."""

    def __init__(self, spec: ModelSpec, entries: Mapping[str, TensorRecipe], capacity: int, arithmetic: DType) -> None:
        self._spec = spec
        self._entries = entries
        self._capacity = capacity
        self._math = arithmetic
        self._net = Recorder()
        self._masks: dict[int, Value] = {}

    def write(self) -> Graph:
        """The graph; call once."""
        net, spec = self._net, self._spec
        token_ids = net.input(TOKEN_IDS, DType.INT32, ("B", "S"))
        self._positions = net.input(POSITIONS, DType.INT32, ("B", "S"))
        self._first = net.input(FIRST_POSITIONS, DType.INT32, ("B",))
        self._lengths = net.input(LENGTHS, DType.INT32, ("B",))
        last = net.input(LAST_TOKENS, DType.INT32, ("B", 1))
        table = (self._capacity, spec.rope.rotary_size // 2)
        self._turns = (
            net.constant("cos", self._math, table, RotaryTable(Turn.COS)),
            net.constant("sin", self._math, table, RotaryTable(Turn.SIN)),
        )
        embedding = self._matrix(
            "embedding", _Projection("model.embed_tokens", 0, spec.vocabulary_size, spec.hidden_size, False)
        )
        residual = net.cast("embedded", net.gather("rows", embedding, token_ids, axis=0), DType.FP32)
        caches: list[Value] = []
        for layer in range(spec.layer_count):
            residual, pair = self._layer(layer, residual)
            caches += pair
        self._head(net.gather("last_hidden", residual, last, axis=1, batch_axes=1))
        for cache in caches:
            net.output(cache)
        return net.finish()

    def _head(self, hidden: Value) -> None:
        """Logits. A tied head is a second copy of the table: the two uses want different layouts."""
        spec, net = self._spec, self._net
        normed = self._norm("final_norm", hidden, layout.FINAL_NORM)
        is_table = spec.tied_head and layout.HEAD not in self._entries
        tensor = "model.embed_tokens" if is_table else "lm_head"
        head = _Projection(tensor, 0, spec.vocabulary_size, spec.hidden_size, False)
        scores = self._project("head", normed, head)
        net.output(net.cast(LOGITS, scores, DType.FP32))

    def _layer(self, layer: int, residual: Value) -> tuple[Value, tuple[Value, Value]]:
        prefix, at = layout.layer_prefix(layer), f"layer{layer}."
        normed = self._norm(f"{at}attention_norm", residual, f"{prefix}input_layernorm.weight")
        attended, cache = self._attention(layer, normed)
        residual = self._join(f"{at}attention_out", residual, attended, f"{prefix}post_self_attn_layernorm.weight")
        normed = self._norm(f"{at}feed_forward_norm", residual, f"{prefix}post_attention_layernorm.weight")
        fed = self._feed_forward(layer, normed)
        residual = self._join(f"{at}feed_forward_out", residual, fed, f"{prefix}post_mlp_layernorm.weight")
        return residual, cache

    def _join(self, name: str, residual: Value, delta: Value, sandwich_norm: str) -> Value:
        """Add what a block computed, itself normalised in some families."""
        net = self._net
        if self._spec.sandwich_norms:
            delta = self._norm(f"{name}.norm", net.cast(f"{name}.wide", delta, DType.FP32), sandwich_norm)
        return net.elementwise(name, Binary.ADD, residual, net.cast(f"{name}.delta", delta, DType.FP32))

    def _attention(self, layer: int, normed: Value) -> tuple[Value, tuple[Value, Value]]:
        spec, net, at = self._spec, self._net, f"layer{layer}."
        query = self._heads(layer, "q", normed, spec.query_heads)
        key = self._heads(layer, "k", normed, spec.key_value_heads)
        value = self._heads(layer, "v", normed, spec.key_value_heads)
        scale = net.constant(f"{at}scale", self._math, (1, 1, 1, 1), Filled(1.0 / math.sqrt(spec.head_size)))
        query = net.elementwise(f"{at}query", Binary.MULTIPLY, self._turn(f"{at}q", query), scale)
        key_names, value_names = cache_names(layer)
        keys = self._cached(key_names, self._turn(f"{at}k", key))
        values = self._cached(value_names, value)
        attended = net.attend(f"{at}attended", query, keys, values, self._visible(layer))
        size = spec.query_heads * spec.head_size
        joined = net.shuffle(f"{at}heads_joined", attended, (0, 0, size), ("B", "S", size), before=(0, 2, 1, 3))
        output = _Projection(
            f"{layout.layer_prefix(layer)}self_attn.o_proj", 0, spec.hidden_size, size, spec.output_bias
        )
        return self._project(f"{at}o", joined, output), (keys, values)

    def _heads(self, layer: int, name: str, normed: Value, count: int) -> Value:
        """Project to heads: [B,count,S,D], each normalised in some families."""
        spec, at, prefix = self._spec, f"layer{layer}.{name}", f"{layout.layer_prefix(layer)}self_attn."
        size = count * spec.head_size
        projection = _Projection(f"{prefix}{name}_proj", 0, size, spec.hidden_size, spec.query_key_value_bias)
        flat = self._project(at, normed, projection)
        shape = ("B", count, "S", spec.head_size)
        heads = self._net.shuffle(f"{at}.heads", flat, (0, 0, count, spec.head_size), shape, after=(0, 2, 1, 3))
        if not spec.query_key_norm or name == "v":
            return heads
        return self._norm(f"{at}.norm", self._net.cast(f"{at}.wide", heads, DType.FP32), f"{prefix}{name}_norm.weight")

    def _turn(self, name: str, heads: Value) -> Value:
        interleaved = self._spec.rope.interleaved
        return self._net.rotate(f"{name}.turned", heads, self._turns, self._positions, interleaved=interleaved)

    def _cached(self, names: tuple[str, str], update: Value) -> Value:
        spec = self._spec
        shape = ("B", spec.key_value_heads, self._capacity, spec.head_size)
        cache = self._net.input(names[0], self._math, shape)
        return self._net.update_cache(names[1], cache, update, self._first)

    def _visible(self, layer: int) -> Value:
        """Lengths where a token sees all before it; a mask where a window bounds it."""
        window = self._spec.windows[layer]
        if window is None or window >= self._capacity:
            return self._lengths
        if window not in self._masks:
            self._masks[window] = self._window_mask(window)
        return self._masks[window]

    def _window_mask(self, window: int) -> Value:
        net, at = self._net, f"window{window}."
        queries = net.shuffle(f"{at}queries", self._positions, (0, 1, -1, 1), ("B", 1, "S", 1))
        seen = net.constant(f"{at}positions", DType.INT32, (1, 1, 1, self._capacity), Positions())
        distance = net.elementwise(f"{at}distance", Binary.SUBTRACT, queries, seen)
        past = net.constant(f"{at}past", DType.INT32, (1, 1, 1, 1), Filled(-1))
        oldest = net.constant(f"{at}oldest", DType.INT32, (1, 1, 1, 1), Filled(window))
        not_future = net.elementwise(f"{at}not_future", Binary.GREATER, distance, past)
        not_too_old = net.elementwise(f"{at}not_too_old", Binary.LESS, distance, oldest)
        return net.elementwise(f"{at}mask", Binary.AND, not_future, not_too_old)

    def _feed_forward(self, layer: int, normed: Value) -> Value:
        spec, net, at = self._spec, self._net, f"layer{layer}."
        prefix, inner, bias = f"{layout.layer_prefix(layer)}mlp.", spec.feed_forward_size, spec.feed_forward_bias
        if spec.fused_gate_up:
            gates = _Projection(f"{prefix}gate_up_proj", 0, inner, spec.hidden_size, bias)
            ups = _Projection(f"{prefix}gate_up_proj", inner, 2 * inner, spec.hidden_size, bias)
        else:
            gates = _Projection(f"{prefix}gate_proj", 0, inner, spec.hidden_size, bias)
            ups = _Projection(f"{prefix}up_proj", 0, inner, spec.hidden_size, bias)
        gate, up = self._project(f"{at}gate", normed, gates), self._project(f"{at}up", normed, ups)
        open_share = net.apply(f"{at}gate.sigmoid", Function.SIGMOID, gate)
        activated = net.elementwise(f"{at}gate.silu", Binary.MULTIPLY, gate, open_share)
        gated = net.elementwise(f"{at}gated", Binary.MULTIPLY, activated, up)
        return self._project(f"{at}down", gated, _Projection(f"{prefix}down_proj", 0, spec.hidden_size, inner, bias))

    def _project(self, name: str, inputs: Value, projection: _Projection) -> Value:
        net, entry = self._net, self._entries.get(projection.weight)
        if entry is not None and entry.input_scale > 0:
            step = net.constant(f"{name}.input_scale", self._math, (), Filled(entry.input_scale))
            codes = net.quantize(f"{name}.input_codes", inputs, step)
            inputs = net.dequantize(f"{name}.input", codes, step, self._math)
        weight = self._as_batch(name, self._matrix(name, projection))
        result = net.product(f"{name}.product", inputs, weight)
        if not projection.has_bias:
            return result
        source = FromModel(f"{projection.tensor}.bias", Field.VALUES, projection.first, projection.stop)
        shape = (1, 1, projection.stop - projection.first)
        return net.elementwise(
            f"{name}.biased", Binary.ADD, result, net.constant(f"{name}.bias", self._math, shape, source)
        )

    def _as_batch(self, name: str, matrix: Value) -> Value:
        """[N,K] to [1,N,K], the rank of what it is multiplied with."""
        return self._net.shuffle(f"{name}.weight", matrix, (1, *matrix.sizes), (1, *matrix.shape))

    def _matrix(self, name: str, projection: _Projection) -> Value:
        """A weight [N,K] in the format of arithmetic, from whatever the recipe keeps."""
        net, entry = self._net, self._entries.get(projection.weight)
        first, stop, columns = projection.first, projection.stop, projection.columns
        rows = stop - first

        def source(field: Field) -> FromModel:
            return FromModel(projection.weight, field, first, stop)

        if entry is None or not entry.format.is_integer:
            return net.constant(f"{name}.values", self._math, (rows, columns), source(Field.VALUES))
        dtype = DType.INT8 if entry.format is Format.INT8 else DType.INT4
        scales_shape = (rows,) if dtype is DType.INT8 else (rows, columns // entry.group)
        codes = net.constant(f"{name}.codes", dtype, (rows, columns), source(Field.CODES))
        scales = net.constant(f"{name}.scales", self._math, scales_shape, source(Field.SCALES))
        return net.dequantize(f"{name}.values", codes, scales, self._math)

    def _norm(self, name: str, value: Value, weight: str) -> Value:
        """Root mean square norm over the last axis, in FP32; the result is in the format of arithmetic."""
        net, size = self._net, value.shape[-1]
        assert isinstance(size, int), f"{name}: {value}"
        assert value.dtype is DType.FP32, f"{name}: {value}"
        ones = (1,) * (len(value.shape) - 1)
        squares = net.elementwise(f"{name}.squares", Binary.MULTIPLY, value, value)
        epsilon = net.constant(f"{name}.epsilon", DType.FP32, (*ones, 1), Filled(self._spec.norm_epsilon))
        power = net.elementwise(f"{name}.power", Binary.ADD, net.mean(f"{name}.mean", squares), epsilon)
        root = net.apply(f"{name}.root", Function.SQUARE_ROOT, power)
        scaled = net.elementwise(
            f"{name}.scaled", Binary.MULTIPLY, value, net.apply(f"{name}.inverse", Function.RECIPROCAL, root)
        )
        gains = net.constant(f"{name}.gains", DType.FP32, (*ones, size), FromModel(weight, Field.VALUES, 0, size))
        wide = net.elementwise(f"{name}.wide_result", Binary.MULTIPLY, scaled, gains)
        return net.cast(f"{name}.result", wide, self._math)
