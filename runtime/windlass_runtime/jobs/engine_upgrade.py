"""Give a replica that serves with torch its TensorRT engine: find a plan in the store or build one, open it, try it."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from windlass_contract.launch_spec import Device, LaunchSpec, Precision
from windlass_runtime import launch
from windlass_runtime.backends.base import Backend, Batch, Row
from windlass_runtime.backends.tensorrt_load import load_engine_backend
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.source import resolve_model
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.engine.bindings import Bindings, load_bindings
from windlass_runtime.engine.compatibility import choose_plan
from windlass_runtime.engine.config_writer import check_targets
from windlass_runtime.engine.gpu import find_gpu
from windlass_runtime.engine.graph import DType
from windlass_runtime.engine.shape import LEAST_ROWS, PlanShape, choose_capacity
from windlass_runtime.engine.store import EngineStore, Entry
from windlass_runtime.errors import EngineUnavailable, StepFailed
from windlass_runtime.jobs.build_engine import EngineRequest, Events, ensure_engine, identify_engine
from windlass_runtime.launch import LoadedModel
from windlass_runtime.quant.formats import PRESETS

logger = logging.getLogger(__name__)

_PROBE_TOKENS: Final = 8
_MOST_ROWS: Final = 64
"""Sequences of a plan built here: each takes a whole capacity of cache."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Which engine a replica wants."""

    folder: Path
    store: EngineStore
    request: EngineRequest
    """Without targets: those follow from the GPU."""
    max_sequence_tokens: int


def load_model(spec: LaunchSpec) -> LoadedModel:
    """The model with torch, and the way to its engine. Raises as `launch.load_model` does, and EngineUnavailable."""
    upgrade = parse_upgrade(spec, resolve_model(spec.model_uri))
    return dataclasses.replace(launch.load_model(spec), upgrade=lambda: open_engine(upgrade))


def parse_upgrade(spec: LaunchSpec, folder: Path) -> Upgrade:
    """What a launch spec asks for. Raises EngineUnavailable where no plan could run."""
    if spec.device is not Device.CUDA:
        raise EngineUnavailable(f"engine_store: expected device cuda with it, found {spec.device}; plans run on GPUs")
    if spec.device_count > 1:
        raise EngineUnavailable(
            f"engine_store: expected device_count 1 with it, found {spec.device_count}; a plan runs on one GPU"
        )
    if spec.cache_bits or spec.cache_reuse:
        raise EngineUnavailable(
            "engine_store: expected neither cache_bits nor cache_reuse with it: plans keep sequences whole, in 16 bits"
        )
    model = read_spec(folder)
    limit = min(spec.max_sequence_tokens or model.max_positions, model.max_positions)
    capacity, precision = choose_capacity(limit, model.max_positions), _choose_precision(spec.precision, model)
    request = EngineRequest(
        precision=precision,
        recipe=Path(spec.recipe.removeprefix("file://")) if spec.recipe else None,
        arithmetic=DType.FP16 if precision in PRESETS else DType(precision),
        targets=(),
        shape=PlanShape(
            capacity=capacity,
            decode_rows=min(max(LEAST_ROWS, spec.max_running_requests), _MOST_ROWS),
            prefill_tokens=min(capacity, spec.step_tokens),
        ),
    )
    return Upgrade(folder, EngineStore(Path(spec.engine_store.removeprefix("file://"))), request, limit)


def _choose_precision(precision: Precision, model: ModelSpec) -> str:
    if precision is Precision.FP32:
        raise EngineUnavailable("engine_store: expected a precision other than FP32 with it: plans compute in 16 bits")
    if precision is Precision.AUTO:
        return "BF16" if model.stored_dtype == "bfloat16" else "FP16"
    return precision.value


def open_engine(upgrade: Upgrade) -> Backend:
    """A backend that has computed something sensible. Raises RuntimeFault."""
    gpu = find_gpu()
    bindings = load_bindings(None, has_gpu=gpu is not None)
    request = dataclasses.replace(upgrade.request, targets=check_targets(bindings, (), gpu))
    entry = find_or_build(upgrade, request, bindings)
    backend = load_engine_backend(
        upgrade.store,
        entry,
        bindings,
        entry.manifest.identity.model_digest,
        max_sequence_tokens=upgrade.max_sequence_tokens,
    )
    try:
        probe(backend)
    except BaseException:
        backend.close()
        raise
    return backend


def find_or_build(upgrade: Upgrade, request: EngineRequest, bindings: Bindings) -> Entry:
    """A plan of the store that will do, or a new one."""
    wanted, entries = identify_engine(upgrade.folder, request, bindings), upgrade.store.entries()
    chosen = choose_plan((entry.manifest for entry in entries), wanted)
    if chosen is not None:
        logger.info("plan found fingerprint=%s", chosen.fingerprint)
        return next(entry for entry in entries if entry.manifest == chosen)
    logger.info("no plan in the store fits, building one fingerprint=%s", wanted.fingerprint)
    return ensure_engine(upgrade.folder, request, bindings, upgrade.store, Events()).entry


def probe(backend: Backend) -> None:
    """Compute a few tokens of nobody's. Raises StepFailed for numbers that cannot be."""
    prompt = tuple(index % backend.info.vocabulary_size for index in range(_PROBE_TOKENS))
    for tokens, start in ((prompt, 0), (prompt[:1], len(prompt))):
        logits = backend.step(Batch((Row("probe", tokens, start, (0,), wants_logits=True),)))
        if not bool(torch.isfinite(logits).all()):
            raise StepFailed("plan: expected finite logits of a first prompt, found others; serving goes on without it")
