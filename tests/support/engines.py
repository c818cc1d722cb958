"""Plans and stores for tests, without building anything."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from windlass_runtime.backends.tensorrt_backend import TensorRTBackend
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.engine.bindings import Bindings, load_bindings
from windlass_runtime.engine.graph import DType, Graph
from windlass_runtime.engine.interpreter import Interpreter
from windlass_runtime.engine.manifest import Identity, Manifest, ModelFacts
from windlass_runtime.engine.network import write_network
from windlass_runtime.engine.runner import InterpretedRunner
from windlass_runtime.engine.shape import PlanShape
from windlass_runtime.engine.store import EngineStore, Entry
from windlass_runtime.engine.weights import ModelWeights
from windlass_runtime.errors import EngineUnavailable
from windlass_runtime.quant.find import open_overlay
from windlass_runtime.quant.formats import PRESETS


def load_rtx_or_skip() -> Bindings:
    """TensorRT-RTX; skips where it is not installed."""
    try:
        return load_bindings(None, has_gpu=False)
    except EngineUnavailable as exc:
        pytest.skip(str(exc))


def build_identity(**changes: Any) -> Identity:
    """A plausible identity."""
    identity = Identity(
        backend="tensorrt-rtx",
        backend_version="1.7.1.116",
        targets=("sm_89",),
        model_digest="ab" * 32,
        architecture="LlamaForCausalLM",
        precision="INT8",
        recipe_digest="cd" * 32,
        arithmetic="FP16",
        capacity=512,
        decode_rows=4,
        prefill_rows=2,
        prefill_tokens=64,
        network_version=1,
    )
    return dataclasses.replace(identity, **changes)


def build_manifest(plan: bytes = b"plan", **changes: Any) -> Manifest:
    """Of a plan with this content; `changes` are of the identity."""
    return Manifest(
        identity=build_identity(**changes),
        model=ModelFacts(101, (2,), 3, 2, 64),
        plan_file="engine.rtx.plan",
        plan_bytes=len(plan),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        weight_bytes=4,
        precision_table={"attention": {"INT8": 4}},
        quality=None,
        build={"seconds": 1.0, "peak_bytes": 1},
    )


def add_plan(root: Path, plan: bytes = b"plan", **changes: Any) -> Entry:
    """Put a plan into a store, as a build does."""
    store, manifest = EngineStore(root), build_manifest(plan, **changes)
    with store.building(manifest.fingerprint, lambda: None) as work:
        (work / manifest.plan_file).write_bytes(plan)
        return store.publish(work, manifest)


@contextlib.contextmanager
def open_graph(
    folder: Path,
    precision: str,
    arithmetic: DType,
    capacity: int,
    recipe: Path | None = None,
) -> Iterator[tuple[Graph, ModelWeights]]:
    """The network of a checkpoint and its numbers; precision FP32 stands for no rounding at all."""
    spec = read_spec(folder)
    preset = precision if precision in PRESETS else None
    with CheckpointTensors(folder, spec) as tensors, open_overlay(folder, spec, tensors, preset, recipe) as overlay:
        entries = {} if overlay is None else dict(overlay.entries)
        yield write_network(spec, entries, capacity, arithmetic), ModelWeights(spec, tensors, overlay)


def interpret(
    folder: Path,
    precision: str = "FP32",
    arithmetic: DType = DType.FP32,
    *,
    shape: PlanShape,
    recipe: Path | None = None,
) -> TensorRTBackend:
    """The executor over the interpreter: what a plan of this checkpoint must answer."""
    spec = read_spec(folder)
    with open_graph(folder, precision, arithmetic, shape.capacity, recipe) as (graph, source):
        runner = InterpretedRunner(Interpreter(graph, source))
    manifest = dataclasses.replace(
        build_manifest(
            arithmetic=arithmetic.value,
            capacity=shape.capacity,
            decode_rows=shape.decode_rows,
            prefill_rows=shape.prefill_rows,
            prefill_tokens=shape.prefill_tokens,
        ),
        model=ModelFacts(
            spec.vocabulary_size, spec.eos_token_ids, spec.layer_count, spec.key_value_heads, spec.head_size
        ),
    )
    return TensorRTBackend(runner, manifest, torch.device("cpu"), cache_dtype=torch.float32)
