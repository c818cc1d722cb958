"""Give a graph to TensorRT, layer by layer, each add checked; a refusal carries the builder's own words."""

from __future__ import annotations

import math
from typing import Any, Final

from windlass_runtime.engine import graph as g
from windlass_runtime.engine.builder_log import BuilderLog
from windlass_runtime.engine.weights import Array, WeightSource, as_stored
from windlass_runtime.errors import EngineError

_DTYPES: Final = {
    g.DType.FP32: "float32",
    g.DType.FP16: "float16",
    g.DType.BF16: "bfloat16",
    g.DType.INT32: "int32",
    g.DType.INT8: "int8",
    g.DType.INT4: "int4",
    g.DType.BOOL: "bool",
}


class Lowering:
    """Fills one network. Arrays it was given stay alive in `kept` until the build has ended."""

    def __init__(self, module: Any, network: Any, log: BuilderLog, source: WeightSource) -> None:
        self._trt = module
        self._net = network
        self._log = log
        self._source = source
        self._tensors: dict[str, Any] = {}
        self.kept: list[Array] = []

    def lower(self, graph: g.Graph) -> None:
        """Add everything. Raises EngineError naming the layer that was refused."""
        for value in graph.inputs:
            shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
            self._keep(value, f"input {value}", self._net.add_input(value.name, self._dtype(value.dtype), shape))
        for node in graph.nodes:
            layer = self._add(node)
            if layer is None:
                raise self._refusal(str(node))
            layer.name = node.output.name
            self._keep(node.output, str(node), layer.get_output(0))
        for value in graph.outputs:
            self._net.mark_output(self._tensors[value.name])

    def _keep(self, value: g.Value, what: str, tensor: Any) -> None:
        if tensor is None:
            raise self._refusal(what)
        try:
            rank = len(tensor.shape)  # shapes are inferred here, and refused here
        except (RuntimeError, ValueError) as exc:
            raise self._refusal(what) from exc
        if rank != len(value.shape) or tensor.dtype != self._dtype(value.dtype):
            raise EngineError(f"{what}: expected this type, TensorRT made it {tensor.dtype} of {rank} axes")
        tensor.name = value.name
        self._tensors[value.name] = tensor

    def _refusal(self, what: str) -> EngineError:
        return EngineError(f"TensorRT refuses `{what}`: {self._log.describe_errors()}")

    def _dtype(self, dtype: g.DType) -> Any:
        return getattr(self._trt, _DTYPES[dtype])

    def _add(self, node: g.Node) -> Any:
        trt, net, inputs = self._trt, self._net, [self._tensors[value.name] for value in node.inputs]
        match node.op:
            case g.Constant(source):
                return self._add_constant(node.output, source)
            case g.Cast():
                return net.add_cast(*inputs, self._dtype(node.output.dtype))
            case g.Quantize():
                return net.add_quantize(*inputs, trt.int8)
            case g.Dequantize():
                layer = net.add_dequantize(*inputs, self._dtype(node.output.dtype))
                if layer is not None and len(node.inputs[1].shape) == 1:
                    layer.axis = 0
                return layer
            case g.Gather(axis, batch_axes):
                layer = net.add_gather_v2(*inputs, trt.GatherMode.DEFAULT)
                layer.axis, layer.num_elementwise_dims = axis, batch_axes
                return layer
            case g.Product():
                plain, transposed = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
                return net.add_matrix_multiply(inputs[0], plain, inputs[1], transposed)
            case g.Elementwise(kind):
                return net.add_elementwise(*inputs, getattr(trt.ElementWiseOperation, kind.value))
            case g.Apply(g.Function.SIGMOID):
                return net.add_activation(*inputs, trt.ActivationType.SIGMOID)
            case g.Apply(function):
                return net.add_unary(*inputs, getattr(trt.UnaryOperation, function.value))
            case g.Mean():
                last = 1 << (len(node.inputs[0].shape) - 1)
                return net.add_reduce(*inputs, trt.ReduceOperation.AVG, last, True)
            case g.Shuffle(before, reshape, after):
                return self._add_shuffle(inputs[0], before, reshape, after)
            case g.Rotate(interleaved):
                return self._add_rotation(node, inputs, interleaved)
            case g.UpdateCache():
                return net.add_kv_cache_update(*inputs, trt.KVCacheMode.LINEAR)
            case g.Attend(masked):
                return self._add_attention(inputs, masked)

    def _add_constant(self, value: g.Value, source: g.Source) -> Any:
        stored = as_stored(self._source.read(source, value), value.dtype)
        self.kept.append(stored)
        weights = self._trt.Weights(self._dtype(value.dtype), stored.ctypes.data, math.prod(value.sizes))
        return self._net.add_constant(value.sizes, weights)

    def _add_shuffle(self, tensor: Any, before: Any, reshape: tuple[int, ...], after: Any) -> Any:
        layer = self._net.add_shuffle(tensor)
        if before is not None:
            layer.first_transpose = before
        layer.reshape_dims = reshape
        if after is not None:
            layer.second_transpose = after
        return layer

    def _add_rotation(self, node: g.Node, inputs: list[Any], interleaved: bool) -> Any:
        heads, cos = node.inputs[0].shape[-1], node.inputs[1].shape[-1]
        assert isinstance(cos, int)
        # 0 stands for the whole head, and only for that.
        turned = 0 if 2 * cos == heads else 2 * cos
        layer = self._net.add_rotary_embedding(*inputs[:3], interleaved, turned)
        if layer is not None:
            layer.set_input(3, inputs[3])
        return layer

    def _add_attention(self, inputs: list[Any], masked: bool) -> Any:
        trt = self._trt
        kind = trt.CausalMaskKind.NONE if masked else trt.CausalMaskKind.LOWER_RIGHT
        layer = self._net.add_attention_v2(*inputs[:3], trt.AttentionNormalizationOp.SOFTMAX, kind)
        if layer is None:
            return None
        # Without this, shapes that have no fused kernel (a few heads) are refused; others keep theirs.
        layer.decomposable = True
        if masked:
            layer.mask = inputs[3]
        else:
            layer.key_value_lengths = inputs[3]
        return layer
