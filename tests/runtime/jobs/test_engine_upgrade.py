from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoints import write_checkpoint
from support.engines import add_plan, interpret, load_rtx_or_skip
from windlass_contract.launch_spec import CacheReuse, Device, LaunchSpec, LaunchSpecError, Precision
from windlass_runtime.engine.shape import PlanShape
from windlass_runtime.errors import EngineUnavailable, StepFailed
from windlass_runtime.jobs.build_engine import identify_engine
from windlass_runtime.jobs.engine_upgrade import find_or_build, load_model, parse_upgrade, probe
from windlass_runtime.testing import FakeBackend

SIZES = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 1}


def build_spec(tmp_path: Path, **changes: Any) -> LaunchSpec:
    spec = LaunchSpec(
        model_uri=str(tmp_path / "model"),
        served_name="m",
        device=Device.CUDA,
        precision=Precision.INT8,
        engine_store=str(tmp_path / "store"),
    )
    return dataclasses.replace(spec, **changes)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", **SIZES)


def test_the_plan_a_replica_wants_follows_from_its_launch_spec(model: Path, tmp_path: Path) -> None:
    upgrade = parse_upgrade(build_spec(tmp_path, max_running_requests=1, step_tokens=64), model)

    assert upgrade.request.shape == PlanShape(capacity=512, decode_rows=2, prefill_rows=2, prefill_tokens=64)
    assert (upgrade.request.precision, upgrade.request.arithmetic) == ("INT8", "FP16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": Device.CPU}, "expected device cuda with it, found cpu"),
        ({"device_count": 2}, "expected device_count 1 with it, found 2"),
        ({"cache_bits": 4}, "expected neither cache_bits nor cache_reuse"),
        ({"cache_reuse": CacheReuse.PREFIX}, "expected neither cache_bits nor cache_reuse"),
        ({"precision": Precision.FP32}, "expected a precision other than FP32"),
    ],
    ids=["CPU", "two GPUs", "4 bits", "reuse", "FP32"],
)
def test_a_replica_that_no_plan_could_serve_is_told_at_once(
    changes: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineUnavailable, match=message):
        load_model(build_spec(tmp_path, **changes))


def test_a_plan_that_a_job_built_for_more_is_taken_and_nothing_is_built(model: Path, tmp_path: Path) -> None:
    rtx = load_rtx_or_skip()
    upgrade = parse_upgrade(build_spec(tmp_path), model)
    request = dataclasses.replace(upgrade.request, targets=("sm_89",))
    identity = dataclasses.asdict(identify_engine(model, request, rtx))
    there = add_plan(tmp_path / "store", **(identity | {"targets": ("sm_80", "sm_89"), "decode_rows": 16}))

    entry = find_or_build(upgrade, request, rtx)

    assert entry.manifest == there.manifest


def test_an_engine_that_computes_is_let_through(model: Path) -> None:
    probe(interpret(model, shape=PlanShape(capacity=32, decode_rows=2, prefill_tokens=16)))


def test_an_engine_that_computes_nonsense_is_not_swapped_in() -> None:
    backend = FakeBackend(page_tokens=64, page_count=1)
    sound = backend.step
    backend.step = lambda batch: sound(batch) * torch.nan  # type: ignore[method-assign]

    with pytest.raises(StepFailed, match="expected finite logits"):
        probe(backend)


def test_a_launch_spec_without_engines_reads_as_before() -> None:
    spec = LaunchSpec(model_uri="m", served_name="m")

    assert "engine_store" not in spec.to_json()
    assert LaunchSpec.from_json(dataclasses.replace(spec, engine_store="/e").to_json()).engine_store == "/e"
    with pytest.raises(LaunchSpecError, match="engine_store: expected str"):
        LaunchSpec.from_json(spec.to_json().replace("{", '{"engine_store": 1,', 1))
