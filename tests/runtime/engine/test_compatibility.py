from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from support.engines import add_plan, build_identity, build_manifest
from windlass_runtime.backends.tensorrt_load import load_engine_backend
from windlass_runtime.engine.bindings import Bindings, Kind
from windlass_runtime.engine.compatibility import Here, choose_plan, find_mismatch
from windlass_runtime.engine.store import EngineStore
from windlass_runtime.errors import EngineError, EngineMismatch

HERE = Here("tensorrt-rtx", "1.7.1.116", "sm_89", "ab" * 32)
RTX = Bindings(Kind.RTX, "1.7.1.116", module=None)


class FakeRunner:
    """A plan that was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False

    def run(self, profile: int, tensors: Any) -> None:
        raise AssertionError("nothing runs here")

    def close(self) -> None:
        self.closed = True


def test_a_plan_for_what_is_here_may_run() -> None:
    assert find_mismatch(build_identity(), HERE) == ""


@pytest.mark.parametrize(
    ("plan", "here", "message"),
    [
        pytest.param({}, {"gpu": None}, "expected a GPU, found none; serve with torch", id="no GPU"),
        pytest.param({"model_digest": "00"}, {}, "build a plan of this checkpoint", id="model"),
        pytest.param({"backend": "tensorrt"}, {}, "build with --backend tensorrt-rtx", id="package"),
        pytest.param({"backend_version": "1.6.0.1"}, {}, "or install tensorrt-rtx==1.6.0.1", id="version"),
        pytest.param({"targets": ("sm_80", "sm_120")}, {}, "expected sm_80, sm_120, found sm_89", id="GPU"),
        pytest.param({"plugins": ("ffn 2",)}, {"plugins": ("ffn 1",)}, "expected ffn 2, found ffn 1", id="plugins"),
    ],
)
def test_a_plan_for_something_else_is_refused_with_the_way_out(
    plan: dict[str, Any], here: dict[str, Any], message: str
) -> None:
    assert message in find_mismatch(build_identity(**plan), dataclasses.replace(HERE, **here))


def open_backend(root: Path, opened: list[FakeRunner], **changes: Any) -> Any:
    entry = add_plan(root, **changes)

    def open_plan(path: Path) -> FakeRunner:
        opened.append(FakeRunner(path))
        return opened[-1]

    return load_engine_backend(
        EngineStore(root),
        entry,
        RTX,
        "ab" * 32,
        gpu="sm_89",
        device=torch.device("cpu"),
        open_plan=open_plan,
    )


def test_a_mismatch_is_found_before_the_plan_is_opened(tmp_path: Path) -> None:
    opened: list[FakeRunner] = []

    with pytest.raises(EngineMismatch, match="build with --target sm_89"):
        open_backend(tmp_path, opened, targets=("sm_120",))

    assert opened == []


def test_a_damaged_plan_is_not_opened_and_can_be_evicted(tmp_path: Path) -> None:
    opened: list[FakeRunner] = []
    entry, store = add_plan(tmp_path), EngineStore(tmp_path)
    entry.plan.write_bytes(b"plam")

    with pytest.raises(EngineError, match="expected sha256"):
        load_engine_backend(store, entry, RTX, "ab" * 32, gpu="sm_89", device=torch.device("cpu"), open_plan=FakeRunner)

    assert opened == []
    assert store.evict(0, idle_s=0)[0].evicted


def test_an_open_plan_is_held_until_its_backend_closes(tmp_path: Path) -> None:
    opened: list[FakeRunner] = []
    backend, store = open_backend(tmp_path, opened), EngineStore(tmp_path)

    held = store.evict(0, idle_s=0)
    backend.close()
    freed = store.evict(0, idle_s=0)

    assert [result.reason for result in held] == ["in use"]
    assert opened[0].closed
    assert freed[0].evicted


def test_a_page_of_the_scheduler_is_a_whole_sequence(tmp_path: Path) -> None:
    info = open_backend(tmp_path, []).info

    assert (info.page_tokens, info.page_count, info.max_sequence_tokens) == (512, 4, 512)
    assert (
        info.cache_bytes == 2 * 3 * 4 * 2 * 512 * 64 * 2
    )  # keys and values, layers, slots, heads, positions, size, FP16


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        pytest.param([{}], 0, id="the very same"),
        pytest.param([{"capacity": 256}], None, id="too short"),
        pytest.param([{"capacity": 8192}, {"capacity": 2048}], 1, id="the least capacity that holds the sequences"),
        pytest.param([{"decode_rows": 2}, {"decode_rows": 8}], 1, id="the most sequences"),
        pytest.param([{"targets": ("sm_80", "sm_89")}], 0, id="for more GPUs"),
        pytest.param([{"targets": ("sm_80",)}], None, id="for another GPU"),
        pytest.param([{"recipe_digest": "00"}], None, id="another recipe"),
        pytest.param([{"network_version": 0}], None, id="an older network"),
        pytest.param([{"plugins": ("ffn 1",)}], None, id="other plugins"),
    ],
)
def test_a_plan_of_the_store_is_chosen_if_it_computes_the_same(there: list[dict[str, Any]], chosen: int | None) -> None:
    manifests = [build_manifest(**changes) for changes in there]

    found = choose_plan(manifests, build_identity())

    assert found == (None if chosen is None else manifests[chosen])
