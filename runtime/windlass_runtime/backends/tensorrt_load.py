"""Open a plan of a store as a backend: everything is checked before TensorRT reads a byte of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from windlass_runtime.backends.tensorrt_backend import TensorRTBackend
from windlass_runtime.engine.bindings import Bindings
from windlass_runtime.engine.compatibility import Here, find_mismatch
from windlass_runtime.engine.gpu import find_gpu
from windlass_runtime.engine.manifest import Manifest
from windlass_runtime.engine.runner import PlanRunner, TensorRTRunner
from windlass_runtime.engine.store import EngineStore, Entry, verify_plan
from windlass_runtime.errors import CapacityError, EngineMismatch

OpenPlan = Callable[[Path], PlanRunner]


def load_engine_backend(
    store: EngineStore,
    entry: Entry,
    bindings: Bindings,
    model_digest: str,
    *,
    max_sequence_tokens: int = 0,
    gpu: str | None = None,
    device: torch.device | None = None,
    open_plan: OpenPlan | None = None,
) -> TensorRTBackend:
    """A backend that holds the plan's lease until it is closed.

    gpu, device, open_plan  None for the GPU here and TensorRT itself; given by tests
    Raises EngineMismatch for a plan of something else, EngineError for a damaged or evicted one, CapacityError.
    """
    here = Here(bindings.kind.value, bindings.version, gpu or find_gpu(), model_digest)
    mismatch = find_mismatch(entry.manifest.identity, here)
    if mismatch:
        raise EngineMismatch(mismatch)
    device = device or torch.device("cuda")
    held = contextlib.ExitStack()
    try:
        held.enter_context(store.using(entry))
        verify_plan(entry)
        if device.type == "cuda":
            _refuse_oversized(entry.manifest, torch.cuda.mem_get_info(device)[0])
        runner = open_plan(entry.plan) if open_plan else TensorRTRunner(bindings, entry.plan)
        held.callback(runner.close)
        return TensorRTBackend(
            runner, entry.manifest, device, max_sequence_tokens=max_sequence_tokens, on_close=held.close
        )
    except BaseException:
        held.close()
        raise


def cache_bytes(manifest: Manifest) -> int:
    """Of keys and values of all slots; two bytes an element in both formats of arithmetic."""
    identity, model = manifest.identity, manifest.model
    heads = model.layers * model.key_value_heads
    return 2 * 2 * identity.decode_rows * identity.capacity * heads * model.head_size


def _refuse_oversized(manifest: Manifest, free: int) -> None:
    cache = cache_bytes(manifest)
    if manifest.plan_bytes + cache > free:
        raise CapacityError(
            f"plan {manifest.fingerprint[:12]}: {manifest.plan_bytes} bytes and a cache of {cache} bytes do not fit in "
            f"{free} free; build it for fewer requests or tokens, or give torch's cache less with --cache-bytes"
        )
