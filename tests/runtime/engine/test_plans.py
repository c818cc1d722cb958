"""Real plans of every family and recipe, built by TensorRT-RTX on the CPU; skipped where it is not installed."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import ARCHITECTURES, write_checkpoint
from support.engines import load_rtx_or_skip, open_graph
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.engine import network
from windlass_runtime.engine.bindings import Bindings, Kind, load_bindings
from windlass_runtime.engine.builder import BuiltPlan, build_plan
from windlass_runtime.engine.builder_log import BuilderLog, make_logger
from windlass_runtime.engine.config_writer import ConfigWriter, check_targets
from windlass_runtime.engine.graph import DType, Filled, Graph, Quantize
from windlass_runtime.engine.lowering import Lowering
from windlass_runtime.engine.plan_text import find_expanding_kernels
from windlass_runtime.engine.recorder import Recorder
from windlass_runtime.engine.shape import PlanShape, profile_ranges
from windlass_runtime.errors import EngineError, EngineMismatch, EngineUnavailable
from windlass_runtime.quant.formats import PRESETS
from windlass_runtime.quant.plan import plan_formats

SHAPE = PlanShape(capacity=128, decode_rows=4, prefill_rows=2, prefill_tokens=32)
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
CASES = [(family, precision) for family in ARCHITECTURES for precision in ("INT8", "INT4")]
CASES += [("LlamaForCausalLM", "FP16"), ("Qwen3ForCausalLM", "BF16")]


@pytest.fixture(scope="module")
def rtx() -> Bindings:
    return load_rtx_or_skip()


def build(rtx: Bindings, folder: Path, precision: str, path: Path, targets: tuple[str, ...] = ("sm_89",)) -> BuiltPlan:
    arithmetic = DType.BF16 if precision == "BF16" else DType.FP16
    with open_graph(folder, precision, arithmetic, SHAPE.capacity) as (graph, source):
        return build_plan(rtx, graph, source, targets, SHAPE, path, lambda *_: None)


@pytest.mark.parametrize(("architecture", "precision"), CASES)
def test_every_family_and_precision_builds_without_expanding_its_weights(
    architecture: str, precision: str, rtx: Bindings, tmp_path: Path
) -> None:
    path = tmp_path / "plan"

    plan = build(rtx, write_checkpoint(tmp_path / "model", architecture, **SIZES), precision, path)

    assert plan.size == path.stat().st_size
    assert plan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert find_expanding_kernels(path) == ()


def test_one_plan_serves_several_gpus(rtx: Bindings, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", **SIZES)

    ada, ampere, both = (tmp_path / name for name in ("ada", "ampere", "both"))
    build(rtx, folder, "INT8", ada)
    build(rtx, folder, "INT8", ampere, ("sm_80",))
    build(rtx, folder, "INT8", both, ("sm_80", "sm_89"))

    assert targets_of(ada) != targets_of(ampere)
    assert targets_of(both) == targets_of(ada) | targets_of(ampere)


def targets_of(plan: Path) -> int:
    """The GPUs that a plan's header names, one bit each: observed in plans of TensorRT-RTX 1.7, not documented."""
    header = plan.read_bytes()[:64]
    assert header[:4] == b"vtrt"
    return int.from_bytes(header[32:36], "little")


@pytest.mark.parametrize("precision", ["INT8", "INT4"])
def test_a_plan_grows_by_the_bytes_of_its_weights(precision: str, rtx: Bindings, tmp_path: Path) -> None:
    sizes, weights = [], []
    for width in (256, 768):
        folder = write_checkpoint(
            tmp_path / str(width), **(SIZES | {"hidden_size": width, "intermediate_size": 3 * width})
        )
        with open_graph(folder, precision, DType.FP16, SHAPE.capacity) as (graph, _):
            weights.append(graph.weight_bytes)
        sizes.append(build(rtx, folder, precision, tmp_path / "plan").size)

    # Kernels take a few megabytes whatever the width; what a wider model adds is weights.
    assert (sizes[1] - sizes[0]) / (weights[1] - weights[0]) == pytest.approx(1.0, abs=0.05)


def test_static_input_scales_of_a_recipe_build_too(rtx: Bindings, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", **SIZES)
    with open_graph(folder, "INT8", DType.FP16, SHAPE.capacity) as (plain, source):
        entries = {
            name: dataclasses.replace(entry, input_scale=0.02 if "proj" in name else 0.0)
            for name, entry in plan_formats(read_spec(folder), PRESETS["INT8"].formats, 32).items()
        }
        graph = network.write_network(read_spec(folder), entries, SHAPE.capacity, DType.FP16)
        build_plan(rtx, graph, source, ("sm_89",), SHAPE, tmp_path / "plan", lambda *_: None)

    assert sum(isinstance(node.op, Quantize) for node in graph.nodes) == 7
    assert not any(isinstance(node.op, Quantize) for node in plain.nodes)
    assert find_expanding_kernels(tmp_path / "plan") == ()


USED_NAMES = [
    "add_attention_v2",
    "add_kv_cache_update",
    "add_rotary_embedding",
    "add_dequantize",
    "add_quantize",
    "add_gather_v2",
    "add_cast",
    "add_matrix_multiply",
    "add_elementwise",
    "add_activation",
    "add_unary",
    "add_reduce",
    "add_shuffle",
    "add_constant",
    "LOWER_RIGHT",
    "key_value_lengths",
    "decomposable",
    "num_elementwise_dims",
    "first_transpose",
    "second_transpose",
    "reshape_dims",
    "progress_monitor",
    "build_serialized_network_to_stream",
    "IStreamWriter",
    "add_optimization_profile",
    "deserialize_cuda_engine",
    "SIGMOID",
    "RECIP",
    "set_optimization_profile_async",
    "execute_async_v3",
    "set_tensor_address",
    "set_input_shape",
    "get_tensor_mode",
]


@pytest.mark.parametrize("package", ["tensorrt_bindings", "tensorrt_rtx_bindings"])
def test_both_packages_have_every_name_that_is_used(package: str) -> None:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    libraries = [path.read_bytes() for path in Path(found.submodule_search_locations[0]).glob("*.so")]

    assert libraries
    assert [name for name in USED_NAMES if not any(name.encode() in data for data in libraries)] == []


def lower(rtx: Bindings, folder: Path) -> tuple[Any, Any, Graph, Lowering]:
    log = BuilderLog()
    builder = rtx.module.Builder(make_logger(rtx.module, log))
    net = builder.create_network(0)
    with open_graph(folder, "INT8", DType.FP16, SHAPE.capacity) as (graph, source):
        lowering = Lowering(rtx.module, net, log, source)
        lowering.lower(graph)
    return builder, net, graph, lowering


def test_inputs_outputs_and_profiles_are_those_of_the_executor(rtx: Bindings, tmp_path: Path) -> None:
    builder, net, graph, _kept = lower(rtx, write_checkpoint(tmp_path, **SIZES))

    prefill, decode = profile_ranges(graph.inputs, SHAPE)
    config = ConfigWriter(rtx, builder).write(("sm_89",), (prefill, decode), lambda *_: None)

    inputs = {net.get_input(index).name: tuple(net.get_input(index).shape) for index in range(net.num_inputs)}
    outputs = {net.get_output(index).name: tuple(net.get_output(index).shape) for index in range(net.num_outputs)}
    keys, values = network.cache_names(0)
    cache = (-1, 2, 128, 32)
    assert inputs == {
        network.TOKEN_IDS: (-1, -1),
        network.POSITIONS: (-1, -1),
        network.FIRST_POSITIONS: (-1,),
        network.LENGTHS: (-1,),
        network.LAST_TOKENS: (-1, 1),
        keys[0]: cache,
        values[0]: cache,
    }
    assert outputs == {network.LOGITS: (-1, 1, 101), keys[1]: cache, values[1]: cache}
    assert config.num_optimization_profiles == 2
    assert (prefill[network.TOKEN_IDS].least, prefill[network.TOKEN_IDS].largest) == ((1, 1), (2, 32))
    assert (decode[network.TOKEN_IDS].least, decode[network.TOKEN_IDS].largest) == ((1, 1), (4, 1))
    assert decode[keys[0]].largest == (4, 2, 128, 32)


def test_a_refused_layer_is_named_with_tensorrts_own_reason(rtx: Bindings) -> None:
    log = BuilderLog()
    builder = rtx.module.Builder(make_logger(rtx.module, log))
    recorder = Recorder()
    codes = recorder.constant("codes", DType.INT4, (64, 64), Filled(1))
    recorder.output(recorder.cast("wide", codes, DType.FP16))
    source = type("Ones", (), {"read": lambda _self, _source, like: __import__("torch").ones(like.shape).char()})()

    with pytest.raises(EngineError, match=r"TensorRT built no plan: .*[Ii]nt4"):
        _build_graph(rtx, builder, recorder.finish(), log, source)


def _build_graph(rtx: Bindings, builder: Any, graph: Graph, log: BuilderLog, source: Any) -> None:
    net = builder.create_network(0)
    Lowering(rtx.module, net, log, source).lower(graph)
    config = ConfigWriter(rtx, builder).write(("sm_89",), (), lambda *_: None)
    if builder.build_serialized_network(net, config) is None:
        raise EngineError(f"TensorRT built no plan: {log.describe_errors()}")


def test_progress_is_reported_by_phase(rtx: Bindings, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with open_graph(write_checkpoint(tmp_path / "m", **SIZES), "INT8", DType.FP16, SHAPE.capacity) as (graph, source):
        build_plan(rtx, graph, source, ("sm_89",), SHAPE, tmp_path / "plan", lambda *step: seen.append(step))

    whole = [(done, steps) for phase, done, steps in seen if phase == "Building engine"]
    assert whole[0][0] == 0
    assert whole[-1][0] == whole[-1][1] > 0


def test_a_build_stops_when_it_is_told_to_and_says_by_whom(rtx: Bindings, tmp_path: Path) -> None:
    def report(*_: Any) -> None:
        raise SystemExit(143)

    folder = write_checkpoint(tmp_path / "m", **SIZES)
    with (
        open_graph(folder, "INT8", DType.FP16, SHAPE.capacity) as (graph, source),
        pytest.raises(SystemExit, match="143"),
    ):
        build_plan(rtx, graph, source, ("sm_89",), SHAPE, tmp_path / "plan", report)


def test_a_target_the_package_does_not_know_is_refused_with_the_way_out(rtx: Bindings) -> None:
    with pytest.raises(EngineMismatch, match=r"target sm_90: tensorrt-rtx .* builds for sm_75, .*; for other GPUs"):
        check_targets(rtx, ("sm_89", "sm_90"), None)


def test_without_gpu_and_target_nothing_is_guessed(rtx: Bindings) -> None:
    with pytest.raises(EngineUnavailable, match="expected a GPU here or --target"):
        check_targets(rtx, (), None)


def test_the_full_package_builds_for_its_own_gpu_only() -> None:
    full = Bindings(Kind.FULL, "11.4.0", module=None)

    assert check_targets(full, (), "sm_90") == ("sm_90",)
    with pytest.raises(EngineMismatch, match="builds only for the GPU it runs on, here sm_90"):
        check_targets(full, ("sm_89",), "sm_90")


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)

    with pytest.raises(EngineUnavailable, match=r"tensorrt-rtx: .*pip install 'windlass\[rtx\]'"):
        load_bindings(None, has_gpu=False)


@pytest.mark.parametrize(
    ("name", "expands"),
    [("__myl_CastMulCast_0x18", True), ("__myl_ReplCastMulCast", True), ("__myl_CastMulCastFc_0x1", False)],
)
def test_a_kernel_that_only_expands_is_told_from_one_that_also_multiplies(
    name: str, expands: bool, tmp_path: Path
) -> None:
    (tmp_path / "plan").write_bytes(b"\0" + name.encode() + b"\0")

    assert bool(find_expanding_kernels(tmp_path / "plan")) == expands
