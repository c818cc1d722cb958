from __future__ import annotations

from typing import Any

import pytest

from support.checkpoints import ARCHITECTURES, build_spec
from windlass_runtime.checkpoint import layout
from windlass_runtime.engine.graph import Attend, DType, Field, FromModel, value_bytes
from windlass_runtime.engine.manifest import tabulate_precision
from windlass_runtime.engine.network import LOGITS, cache_names, write_network
from windlass_runtime.engine.recorder import Recorder
from windlass_runtime.quant.formats import PRESETS, Format
from windlass_runtime.quant.plan import plan_formats
from windlass_runtime.quant.recipe import TensorRecipe

GOLDEN = """\
layer0.down.codes INT8[48,88] = Constant(source=FromModel(tensor='model.layers.0.mlp.down_proj.weight', \
field=<Field.CODES: 'codes'>, first=0, stop=48))()
layer0.down.scales FP16[48] = Constant(source=FromModel(tensor='model.layers.0.mlp.down_proj.weight', \
field=<Field.SCALES: 'scales'>, first=0, stop=48))()
layer0.down.values FP16[48,88] = Dequantize()(layer0.down.codes, layer0.down.scales)
layer0.down.weight FP16[1,48,88] = Shuffle(before=None, reshape=(1, 48, 88), after=None)(layer0.down.values)
layer0.down.product FP16[B,S,48] = Product()(layer0.gated, layer0.down.weight)
layer0.feed_forward_out.delta FP32[B,S,48] = Cast()(layer0.down.product)
layer0.feed_forward_out FP32[B,S,48] = Elementwise(kind=<Binary.ADD: 'SUM'>)\
(layer0.attention_out, layer0.feed_forward_out.delta)
"""


def write(architecture: str, preset: str | None = "INT8", **overrides: Any) -> Any:
    spec = build_spec(architecture, **overrides)
    entries = {} if preset is None else plan_formats(spec, PRESETS[preset].formats, 32)
    return spec, write_network(spec, entries, 128, DType.FP16)


def test_the_network_reads_as_it_is_built() -> None:
    _, graph = write("LlamaForCausalLM")

    assert GOLDEN in graph.render()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("preset", [None, "INT8", "INT4"])
def test_every_row_of_every_tensor_is_in_the_network_once(architecture: str, preset: str | None) -> None:
    spec, graph = write(architecture, preset)
    rows: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for node in graph.constants:
        source = node.op.source
        if isinstance(source, FromModel):
            rows.setdefault((source.tensor, source.field), []).append((source.first, source.stop))

    for name, shape in layout.expected_tensors(spec).items():
        parts = [sorted(spans) for (tensor, field), spans in rows.items() if tensor == name and field != Field.SCALES]
        assert len(parts) == 1, name
        covered = [row for first, stop in parts[0] for row in range(first, stop)]
        assert covered == list(range(shape[0])), name


def test_keys_and_values_of_every_layer_go_in_and_out() -> None:
    spec, graph = write("Qwen3ForCausalLM")
    pairs = [pair for layer in range(spec.layer_count) for pair in cache_names(layer)]

    assert [value.name for value in graph.outputs] == [LOGITS, *(after for _, after in pairs)]
    assert {before for before, _ in pairs} <= {value.name for value in graph.inputs}


@pytest.mark.parametrize(("window", "masked"), [(24, True), (128, False), (4096, False)])
def test_only_a_window_shorter_than_the_capacity_needs_a_mask(window: int, masked: bool) -> None:
    _, graph = write("MistralForCausalLM", sliding_window=window)

    assert {node.op.masked for node in graph.nodes if isinstance(node.op, Attend)} == {masked}


def test_a_tied_head_is_counted_as_the_second_copy_it_is() -> None:
    _, tied = write("LlamaForCausalLM", None, tie_word_embeddings=True)
    _, own = write("LlamaForCausalLM", None, tie_word_embeddings=False)

    assert tied.weight_bytes == own.weight_bytes
    assert tabulate_precision(tied) == tabulate_precision(own)


def test_the_bytes_of_a_network_are_those_of_its_formats() -> None:
    _, graph = write("LlamaForCausalLM", "INT8", hidden_size=64, num_hidden_layers=1)

    table = tabulate_precision(graph)

    assert table["embedding"] == {"INT4": 101 * 32, "scales": 101 * 2 * 2}
    assert table["head"] == {"INT8": 101 * 64, "scales": 101 * 2}
    assert table["feedForward"]["INT8"] == 3 * 64 * 88
    assert table["norms"] == {"FP32": 3 * 64 * 4}
    small = sum(value_bytes(node.output) for node in graph.constants if not isinstance(node.op.source, FromModel))
    assert graph.weight_bytes == small + sum(sum(sizes.values()) for sizes in table.values())


def test_static_inputs_of_a_recipe_are_quantised_before_the_product() -> None:
    spec = build_spec(num_hidden_layers=1)
    entry = TensorRecipe(Format.INT8, input_scale=0.02)
    graph = write_network(spec, {"model.layers.0.mlp.down_proj.weight": entry}, 128, DType.FP16)

    assert "layer0.down.input_codes INT8[B,S,88] = Quantize()(layer0.gated, layer0.down.input_scale)" in graph.render()


def test_formats_are_never_mixed_silently() -> None:
    net = Recorder()
    half, wide = net.input("half", DType.FP16, (1, 4)), net.input("wide", DType.FP32, (1, 4))

    with pytest.raises(AssertionError, match="mixed"):
        net.product("mixed", half, wide)
