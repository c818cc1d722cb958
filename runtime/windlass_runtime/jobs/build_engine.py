"""Build plans of one model into a store: what is there is found, what is missing is built, once among all processes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from windlass_runtime.backends.load import observe_free_bytes
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.engine.bindings import PLAN_SUFFIXES, Bindings, Kind
from windlass_runtime.engine.builder import build_plan
from windlass_runtime.engine.config_writer import Report
from windlass_runtime.engine.graph import DType, Graph
from windlass_runtime.engine.manifest import Identity, Manifest, ModelFacts, tabulate_precision
from windlass_runtime.engine.network import NETWORK_VERSION, write_network
from windlass_runtime.engine.plan_text import find_expanding_kernels
from windlass_runtime.engine.shape import PlanShape
from windlass_runtime.engine.store import EngineStore, Entry
from windlass_runtime.engine.weights import ModelWeights
from windlass_runtime.errors import CapacityError, EngineError, QualityMissed
from windlass_runtime.jobs.quality import find_misses
from windlass_runtime.model.weights import Overlay
from windlass_runtime.quant.find import find_recipe, open_overlay
from windlass_runtime.quant.formats import PRESETS
from windlass_runtime.quant.recipe import JSON_FILE, Recipe, digest_model, read_recipe

logger = logging.getLogger(__name__)

_LIBRARIES_BYTES: Final = 2**30
"""TensorRT, torch and Python: 950 MB with a network of four megabytes."""
_MEMORY_PER_WEIGHT: Final = 3.5
"""Bytes of memory per byte of weights, at most: arrays and TensorRT's copies; 2.6 with 346 MB of weights."""
_DISK_MARGIN_BYTES: Final = 64 * 2**20
"""Kernels in a plan, which do not depend on the size of the model."""
DATA_FREE: Final = "data-free"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """Which plan to have."""

    precision: str
    """INT8, INT4, FP16 or BF16."""
    recipe: Path | None
    arithmetic: DType
    targets: tuple[str, ...]
    shape: PlanShape
    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class EngineResult:
    """A plan of the store."""

    entry: Entry
    built: bool
    """False where it was there already."""


@dataclass(frozen=True, slots=True)
class Events:
    """What a build tells while it goes on."""

    memory: Callable[[int, int], None] = lambda *_: None
    """Bytes needed at most, and bytes free, before anything is built."""
    waiting: Callable[[str], None] = lambda _: None
    """Another process builds the plan with this fingerprint."""
    progress: Report = lambda *_: None


def ensure_engine(
    folder: Path, request: EngineRequest, bindings: Bindings, store: EngineStore, events: Events
) -> EngineResult:
    """Find the plan in the store, or build it.

    Raises CheckpointError for the model, RecipeError, QualityMissed for a recipe below its own thresholds,
    CapacityError before a build that memory or disk could not hold, and EngineError.
    """
    spec = read_spec(folder)
    with torch.inference_mode(), _open_model(folder, spec, request) as model:
        identity = _identify(spec, model, request, bindings)
        entry = None if request.rebuild else store.find(identity.fingerprint)
        if entry is not None:
            return EngineResult(entry, built=False)
        graph = write_network(spec, model.entries, request.shape.capacity, request.arithmetic)
        events.memory(*_check_room(graph, store.root))
        with store.building(identity.fingerprint, lambda: events.waiting(identity.fingerprint)) as work:
            entry = None if request.rebuild else store.find(identity.fingerprint)
            if entry is not None:
                return EngineResult(entry, built=False)
            manifest = _build(graph, spec, model, identity, request, bindings, work, events.progress)
            return EngineResult(store.publish(work, manifest), built=True)


def identify_engine(folder: Path, request: EngineRequest, bindings: Bindings) -> Identity:
    """What the plan of a request would be, without building it. Raises as `ensure_engine` does."""
    spec = read_spec(folder)
    with torch.inference_mode(), _open_model(folder, spec, request) as model:
        return _identify(spec, model, request, bindings)


@dataclass(frozen=True, slots=True)
class _OpenModel:
    tensors: CheckpointTensors
    overlay: Any
    """RecipeTensors, DataFreeTensors, or None."""
    recipe: Recipe | None
    recipe_digest: str
    digest: str

    @property
    def entries(self) -> dict[str, Any]:
        return {} if self.overlay is None else dict(self.overlay.entries)


@contextlib.contextmanager
def _open_model(folder: Path, spec: ModelSpec, request: EngineRequest) -> Iterator[_OpenModel]:
    preset = request.precision if request.precision in PRESETS else None
    if preset is None and request.recipe is not None:
        raise EngineError(
            f"recipe {request.recipe}: expected precision INT8 or INT4 with one, found {request.precision}"
        )
    place = find_recipe(folder, preset, request.recipe)
    recipe = None if place is None else read_recipe(place)
    if recipe is not None:
        _refuse_poor_quality(place, recipe)
    recipe_digest = DATA_FREE if preset else ""
    if place is not None:
        recipe_digest = hashlib.sha256((place / JSON_FILE).read_bytes()).hexdigest()
    with (
        CheckpointTensors(folder, spec) as tensors,
        open_overlay(folder, spec, tensors, preset, request.recipe) as overlay,
    ):
        yield _OpenModel(tensors, overlay, recipe, recipe_digest, digest_model(folder, spec, tensors))


def _refuse_poor_quality(place: Path | None, recipe: Recipe) -> None:
    misses = find_misses(recipe.quality, recipe.thresholds) if recipe.quality else []
    if misses:
        raise QualityMissed(f"recipe {place}: {'; '.join(misses)}; calibrate again, or state what you accept there")


def _identify(spec: ModelSpec, model: _OpenModel, request: EngineRequest, bindings: Bindings) -> Identity:
    return Identity(
        backend=bindings.kind.value,
        backend_version=bindings.version,
        targets=request.targets,
        model_digest=model.digest,
        architecture=spec.architecture,
        precision=request.precision,
        recipe_digest=model.recipe_digest,
        arithmetic=request.arithmetic.value,
        capacity=request.shape.capacity,
        decode_rows=request.shape.decode_rows,
        prefill_rows=request.shape.prefill_rows,
        prefill_tokens=request.shape.prefill_tokens,
        network_version=NETWORK_VERSION,
    )


def bound_memory(weight_bytes: int) -> int:
    """Bytes that a build takes at most."""
    return int(weight_bytes * _MEMORY_PER_WEIGHT) + _LIBRARIES_BYTES


def _check_room(graph: Graph, root: Path) -> tuple[int, int]:
    """Bytes of memory needed and free. Raises CapacityError when memory or disk are too small."""
    needed, free = bound_memory(graph.weight_bytes), observe_free_bytes(torch.device("cpu"))
    if needed > free:
        raise CapacityError(
            f"engine build: {graph.weight_bytes} bytes of weights need at most {needed} bytes of memory, {free} free; "
            "build on a larger machine"
        )
    root.mkdir(parents=True, exist_ok=True)
    disk, disk_free = graph.weight_bytes + _DISK_MARGIN_BYTES, shutil.disk_usage(root).free
    if disk > disk_free:
        raise CapacityError(f"store {root}: the plan needs {disk} bytes of disk, {disk_free} free")
    return needed, free


def _build(
    graph: Graph,
    spec: ModelSpec,
    model: _OpenModel,
    identity: Identity,
    request: EngineRequest,
    bindings: Bindings,
    work: Path,
    report: Report,
) -> Manifest:
    started_s, name = time.perf_counter(), "engine" + PLAN_SUFFIXES[bindings.kind]
    overlay: Overlay | None = model.overlay
    source = ModelWeights(spec, model.tensors, overlay)
    plan = build_plan(bindings, graph, source, request.targets, request.shape, work / name, report)
    expanding = find_expanding_kernels(work / name) if bindings.kind is Kind.RTX else ()
    if expanding:
        logger.warning("the plan writes integer weights out as floats at every step kernels=%s", ", ".join(expanding))
    return Manifest(
        identity=identity,
        model=ModelFacts(
            spec.vocabulary_size, spec.eos_token_ids, spec.layer_count, spec.key_value_heads, spec.head_size
        ),
        plan_file=name,
        plan_bytes=plan.size,
        plan_sha256=plan.sha256,
        weight_bytes=graph.weight_bytes,
        precision_table=tabulate_precision(graph),
        quality=_describe_quality(model.recipe),
        build={
            "seconds": round(time.perf_counter() - started_s, 1),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "unix_time_s": int(time.time()),
            "expanding_kernels": list(expanding),
        },
    )


def _describe_quality(recipe: Recipe | None) -> dict[str, Any] | None:
    if recipe is None or recipe.quality is None:
        return None
    return dataclasses.asdict(recipe.quality) | {"perplexity_loss": recipe.quality.perplexity_loss}
