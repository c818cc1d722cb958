from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.engines import add_plan, build_manifest
from windlass_runtime.engine.manifest import FILE_NAME, parse_manifest
from windlass_runtime.engine.store import EngineStore, Entry, choose_victims, verify_plan
from windlass_runtime.errors import EngineError


def test_a_published_plan_is_found_by_its_fingerprint(tmp_path: Path) -> None:
    entry = add_plan(tmp_path)

    found = EngineStore(tmp_path).find(entry.manifest.fingerprint)

    assert found is not None
    assert found.manifest == build_manifest()
    assert found.plan.read_bytes() == b"plan"


@pytest.mark.parametrize(
    "change",
    [
        {"backend_version": "1.8"},
        {"targets": ("sm_120",)},
        {"model_digest": "00"},
        {"recipe_digest": "00"},
        {"capacity": 2048},
        {"plugins": ("sparse-ffn 1",)},
        {"network_version": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_input_gives_another_fingerprint(change: dict[str, Any]) -> None:
    assert build_manifest(**change).fingerprint != build_manifest().fingerprint


def test_a_failed_build_leaves_nothing_to_find(tmp_path: Path) -> None:
    store, manifest = EngineStore(tmp_path), build_manifest()

    with contextlib.suppress(OSError), store.building(manifest.fingerprint, lambda: None) as work:
        (work / "engine.rtx.plan").write_bytes(b"half")
        raise OSError("disk full")

    assert store.entries() == []
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    store, manifest = EngineStore(tmp_path), build_manifest()
    left = tmp_path / f".building-{manifest.fingerprint}"
    left.mkdir()
    (left / "engine.rtx.plan").write_bytes(b"half")

    with store.building(manifest.fingerprint, lambda: None) as work:
        assert list(work.iterdir()) == []


def test_a_second_publication_replaces_the_first(tmp_path: Path) -> None:
    add_plan(tmp_path, b"plan")

    entry = add_plan(tmp_path, b"plan")

    assert sorted(path.name for path in entry.folder.iterdir()) == ["engine.rtx.plan", "lease", "manifest.json"]


def build_once(root: Path, answers: Any) -> None:
    store, manifest, waited = EngineStore(root), build_manifest(), []
    with store.building(manifest.fingerprint, lambda: waited.append(True)) as work:
        if store.find(manifest.fingerprint) is not None:
            answers.put(("found", bool(waited)))
            return
        answers.put(("builds", bool(waited)))
        (work / manifest.plan_file).write_bytes(b"plan")
        store.publish(work, manifest)


def test_processes_that_want_one_plan_build_it_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    answers: Any = fork.Queue()
    processes = [fork.Process(target=build_once, args=(tmp_path, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)

    found = sorted(answers.get(timeout=5)[0] for _ in processes)

    assert found == ["builds", "found", "found", "found"]


def test_eviction_removes_the_longest_unused_first_and_spares_what_is_used(tmp_path: Path) -> None:
    entries = [add_plan(tmp_path, bytes(100), capacity=capacity) for capacity in (512, 2048, 8192)]
    for age, entry in zip((300, 200, 100), entries, strict=True):
        os.utime(entry.folder / "lease", (1000 - age, 1000 - age))
    store = EngineStore(tmp_path)

    with store.using(entries[0]):
        os.utime(entries[0].folder / "lease", (700, 700))
        results = store.evict(0, idle_s=150, now_s=1000)

    assert [(result.evicted, result.reason) for result in results] == [
        (False, "in use"),
        (True, "longest unused"),
        (False, "used 100 s ago"),
    ]
    assert {entry.manifest.identity.capacity for entry in store.entries()} == {512, 8192}


def test_an_evicted_plan_cannot_be_taken_into_use(tmp_path: Path) -> None:
    entry, store = add_plan(tmp_path), EngineStore(tmp_path)
    store.evict(0, idle_s=0)

    with pytest.raises(EngineError, match="found it evicted; build it again"), store.using(entry):
        pass


@given(
    sizes=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1000)), max_size=8),
    keep=st.integers(0, 400),
    idle=st.integers(0, 500),
)
def test_eviction_frees_just_enough_of_what_may_go(sizes: list[tuple[int, int]], keep: int, idle: int) -> None:
    entries = [Entry(Path(str(index)), build_manifest(), size, used) for index, (size, used) in enumerate(sizes)]

    victims = [entry for entry, spared in choose_victims(entries, keep, idle_s=idle, now_s=1000) if not spared]

    left = sum(entry.size for entry in entries) - sum(entry.size for entry in victims)
    assert all(1000 - entry.last_used_s >= idle for entry in victims)
    if victims:
        assert left + victims[-1].size > keep, "one too many was chosen"
    may_go = [entry for entry in entries if 1000 - entry.last_used_s >= idle]
    assert left <= keep or len(victims) == len(may_go)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entry: entry.plan.unlink(), "expected the plan, found nothing"),
        (lambda entry: entry.plan.write_bytes(b"plans"), "expected 4 bytes, found 5"),
        (lambda entry: entry.plan.write_bytes(b"plam"), "expected sha256"),
    ],
    ids=["missing", "longer", "flipped"],
)
def test_a_damaged_plan_is_told_from_a_sound_one(damage: Any, message: str, tmp_path: Path) -> None:
    entry, store = add_plan(tmp_path), EngineStore(tmp_path)
    verify_plan(entry)

    damage(entry)

    with pytest.raises(EngineError, match=message):
        verify_plan(store.entries()[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: expected 1, found 2; build again"),
        ({"fingerprint": "00"}, "fingerprint: expected .* found '00'; the manifest was altered"),
        ({"plan_file": "../secret"}, "expected a plain file name, found '../secret'"),
        ({"identity": {}}, "expected a manifest"),
    ],
    ids=["newer", "altered", "outside", "empty"],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(change: dict[str, Any], message: str) -> None:
    text = json.dumps(json.loads(build_manifest().to_json()) | change)

    with pytest.raises(EngineError, match=message):
        parse_manifest(text, FILE_NAME)


def test_one_manifest_that_cannot_be_used_hides_no_other_plan(tmp_path: Path) -> None:
    sound, newer = add_plan(tmp_path), add_plan(tmp_path, capacity=2048)
    manifest = newer.folder / FILE_NAME
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    store = EngineStore(tmp_path)

    entries, faults = store.scan()

    assert entries == store.entries() == [sound]
    assert {name: str(fault) for name, fault in faults.items()} == {
        newer.folder.name: f"{manifest}: version: expected 1, found 2; build again"
    }


def test_a_plan_that_is_evicted_while_the_store_is_read_is_just_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, store = [add_plan(tmp_path, capacity=capacity) for capacity in (512, 2048)], EngineStore(tmp_path)
    listed = list(tmp_path.glob(f"*/{FILE_NAME}"))
    EngineStore(tmp_path).evict(entries[0].size, idle_s=0)
    monkeypatch.setattr(Path, "glob", lambda _self, _pattern: listed)

    left, faults = store.scan()

    assert (len(left), faults) == (1, {})
