from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from support.checkpoints import write_checkpoint
from support.engines import add_plan, load_rtx_or_skip
from windlass_runtime.engine.graph import DType
from windlass_runtime.engine.shape import PlanShape, choose_capacity
from windlass_runtime.errors import EngineError
from windlass_runtime.jobs.build_engine import bound_memory
from windlass_runtime.jobs.build_engine_command import plan_requests
from windlass_runtime.jobs.engine_store_command import verify_plans
from windlass_runtime.main import command_line

SMALL = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
OPTIONS: dict[str, Any] = {
    "precision": "INT8",
    "recipe": None,
    "arithmetic": None,
    "max_sequence_tokens": (),
    "max_running_requests": 16,
    "prefill_rows": 4,
    "prefill_tokens": 512,
    "rebuild": False,
}


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(command_line, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_plan_is_built_once_and_can_be_listed_inspected_and_verified(tmp_path: Path) -> None:
    load_rtx_or_skip()
    model, store = write_checkpoint(tmp_path / "model", num_key_value_heads=1, **SMALL), str(tmp_path / "store")
    build = ("build-engine", str(model), "--store", store, "--target", "sm_89", "-o", "json")

    first, second = invoke(*build)["engines"][0], invoke(*build)["engines"][0]
    listed = invoke("engine", "list", "--store", store, "-o", "json")["engines"]
    inspected = invoke("engine", "inspect", first["fingerprint"][:8], "--store", store, "-o", "json")
    verified = invoke("engine", "verify", "--store", store, "-o", "json")["engines"]

    assert (first["built"], second["built"]) == (True, False)
    assert first["identity"]["recipe_digest"] == "data-free"
    assert first["quality"] is None
    assert first["plan_sha256"] == second["plan_sha256"] == inspected["plan_sha256"]
    assert [entry["fingerprint"] for entry in listed] == [first["fingerprint"]]
    assert [entry["sound"] for entry in verified] == [True]


def test_verify_names_plans_without_a_usable_manifest_beside_damaged_and_sound_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, flipped, unreadable = (add_plan(tmp_path, capacity=capacity) for capacity in (512, 2048, 8192))
    flipped.plan.write_bytes(b"plam")
    (unreadable.folder / "manifest.json").write_text("{")

    with pytest.raises(EngineError, match="expected a manifest"):
        verify_plans(tmp_path, None, as_json=True)

    found = {entry["fingerprint"]: entry["sound"] for entry in json.loads(capsys.readouterr().out)["engines"]}
    assert found == {sound.folder.name: True, flipped.folder.name: False, unreadable.folder.name: False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "BF16", "arithmetic": "FP16"}, "--arithmetic: expected BF16 as in --precision, found FP16"),
        ({"max_sequence_tokens": (5000,)}, "expected at most 4096 tokens by the model, found 5000"),
    ],
    ids=["two float formats", "longer than the model"],
)
def test_options_that_contradict_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        plan_requests(OPTIONS | change, ("sm_89",), 4096)


def test_each_capacity_of_the_ladder_becomes_one_plan() -> None:
    requests = plan_requests(OPTIONS | {"max_sequence_tokens": (300, 512, 3000)}, ("sm_89",), 4096)

    assert [request.shape.capacity for request in requests] == [512, 4096]
    assert {request.arithmetic for request in requests} == {DType.FP16}


@pytest.mark.parametrize(
    ("tokens", "longest", "capacity"),
    [
        (2, 1024, 512),
        (512, 1024, 512),
        (513, 1024, 1024),
        (8192, 40960, 8192),
        (8193, 40960, 32768),
        (40960, 40960, 40960),
    ],
)
def test_a_capacity_is_the_least_rung_that_holds_the_tokens(tokens: int, longest: int, capacity: int) -> None:
    assert choose_capacity(tokens, longest) == capacity


def test_a_single_request_still_gets_a_plan_for_two_rows() -> None:
    request = plan_requests(OPTIONS | {"max_running_requests": 1, "prefill_rows": 1}, ("sm_89",), 4096)[0]

    assert (request.shape.decode_rows, request.shape.prefill_rows) == (2, 2)
    with pytest.raises(EngineError, match="decode rows: expected 2 or more, found 1"):
        PlanShape(capacity=512, decode_rows=1)


def test_the_memory_bound_covers_what_a_large_build_took() -> None:
    # A random Llama in INT8: 4 layers, hidden size 2048, vocabulary 32,000; 355.6 MB of plan, 1,835 MB at most.
    assert bound_memory(346_000_000) >= 1_835_000_000
