"""Plans and stores for tests, without building anything."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from windlass_runtime.engine.bindings import Bindings, load_bindings
from windlass_runtime.engine.manifest import Identity, Manifest, ModelFacts
from windlass_runtime.engine.store import EngineStore, Entry
from windlass_runtime.errors import EngineUnavailable


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
