"""The checkpoint and the results folder: what survives, what is refused, and that output appears once and whole."""

import threading
from pathlib import Path
from typing import Any

import pytest

from support.batches import build_row, ids_of, read_rows, write_batch
from windlass_runtime.errors import BatchError, BatchInputError
from windlass_runtime.jobs.batch.journal import JournalReader, JournalWriter
from windlass_runtime.jobs.batch.reply import describe_row, describe_unanswered
from windlass_runtime.jobs.batch.results import BatchInput, Summary, claim_results, publish
from windlass_runtime.jobs.batch.rows import read_input


def good(custom_id: str, text: str = "yes") -> dict[str, Any]:
    return describe_row(custom_id, "digest", 200, "request", {"text": text})


def bad(custom_id: str) -> dict[str, Any]:
    return describe_unanswered(custom_id, "digest", "request_timeout", "no answer")


@pytest.fixture
def batch(tmp_path: Path) -> BatchInput:
    return read_input(write_batch(tmp_path / "in.jsonl", 6))


def write_journal(results: Path, worker: str, rows: list[dict[str, Any]], shard: int = 0) -> None:
    writer = JournalWriter(results, shard, 2, worker)
    for row in rows:
        writer.append(row)
    writer.close()


def test_the_output_has_each_row_once_in_the_order_of_the_input(tmp_path: Path, batch: BatchInput) -> None:
    write_journal(tmp_path, "b", [good("row-4"), good("row-0", "second"), bad("row-2")], shard=1)
    write_journal(tmp_path, "a", [good("row-5"), good("row-1"), good("row-0", "first"), good("row-3")])

    summary = publish(tmp_path, batch)

    assert summary == Summary(rows=6, succeeded=5, failed=1, computed_twice=1)
    assert ids_of(read_rows(tmp_path)) == ["row-0", "row-1", "row-3", "row-4", "row-5"]
    assert read_rows(tmp_path)[0]["response"]["body"] == {"text": "first"}
    assert ids_of(read_rows(tmp_path, "errors")) == ["row-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["completed", "in.jsonl"]


def test_workers_that_publish_at_once_agree_on_one_output(tmp_path: Path, batch: BatchInput) -> None:
    write_journal(tmp_path, "a", [good(f"row-{number}") for number in range(6)])
    write_journal(tmp_path, "b", [bad(f"row-{number}") for number in range(6)])
    summaries: list[Summary] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        summaries.append(publish(tmp_path, batch))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert summaries == [Summary(6, 6, 0, 6)] * 8
    assert ids_of(read_rows(tmp_path)) == batch.ids
    assert not list(tmp_path.glob(".completed*"))


def test_the_last_words_of_a_killed_worker_are_no_row(tmp_path: Path) -> None:
    write_journal(tmp_path, "a", [good("row-0"), good("row-1")])
    file = next((tmp_path / "journal").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    reader = JournalReader(tmp_path)

    assert [entry.custom_id for entry in reader.read_new()] == ["row-0"]
    file.write_bytes(whole)
    assert [entry.custom_id for entry in reader.read_new()] == ["row-1"]
    assert list(reader.read_new()) == []


def test_a_damaged_checkpoint_is_named_and_nothing_is_guessed(tmp_path: Path) -> None:
    write_journal(tmp_path, "a", [good("row-0")])
    file = next((tmp_path / "journal").iterdir())
    file.write_bytes(b"\0" * 40 + b"\n" + file.read_bytes())

    with pytest.raises(BatchError, match=f"{file}: expected finished rows, found a damaged line"):
        list(JournalReader(tmp_path).read_new())


def test_which_shards_have_begun_is_told_for_one_way_to_cut_the_batch(tmp_path: Path) -> None:
    JournalWriter(tmp_path, 1, 4, "a").close()
    JournalWriter(tmp_path, 7, 9, "b").close()

    assert JournalReader(tmp_path).begun(4) == {1}


@pytest.mark.parametrize(
    ("rows", "model", "words"),
    [
        pytest.param(["other"], "server", "input_sha256: expected", id="another input"),
        pytest.param(["row-0"], "file:///other INT8", "model: expected 'file:///other INT8'", id="another model"),
    ],
)
def test_a_folder_of_another_batch_is_refused(tmp_path: Path, rows: list[str], model: str, words: str) -> None:
    results = tmp_path / "results"
    first = read_input(write_batch(tmp_path / "first.jsonl", [build_row("row-0")]))
    claim_results(results, first, "server")
    claim_results(results, first, "server")  # its own batch goes on
    second = read_input(write_batch(tmp_path / "second.jsonl", [build_row(name) for name in rows]))

    with pytest.raises(BatchInputError, match=words):
        claim_results(results, second, model)


def test_rows_of_a_batch_that_runs_again_have_the_same_ids() -> None:
    assert good("a")["id"] == describe_unanswered("a", "digest", "code", "words")["id"]
    assert good("a")["id"] != good("b")["id"]
