"""Which batch files are taken, and what is said about the others."""

from pathlib import Path
from typing import Any

import pytest

from support.batches import build_row, write_batch
from windlass_runtime.errors import BatchInputError
from windlass_runtime.jobs.batch.rows import read_input


def test_every_row_of_a_sound_file_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    first, second = build_row("ä", url="/v1/chat/completions", body={"messages": []}), build_row("b")
    write_batch(path, [first, second])
    path.write_text(path.read_text().replace("\n", "\n\n", 1))  # an empty line between rows is no row

    batch = read_input(path)

    assert batch.ids == ["ä", "b"]
    assert (batch.read(0).url, batch.read(0).body) == (first["url"], first["body"])
    assert (batch.read(1).number, batch.read(1).body) == (1, second["body"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"custom_id": None}, "custom_id: expected text of 1 to 512 characters, found nothing", id="no id"),
        pytest.param({"custom_id": 7}, "custom_id: expected text of 1 to 512 characters, found 7", id="number as id"),
        pytest.param({"custom_id": "a" * 513}, "custom_id: expected text of 1 to 512 characters", id="long id"),
        pytest.param({"method": "GET"}, "method: expected 'POST', found 'GET'", id="method"),
        pytest.param({"url": "/v1/embeddings"}, "url: expected /v1/chat/completions or", id="unknown endpoint"),
        pytest.param({"body": []}, "body: expected an object, found []", id="body is a list"),
        pytest.param({"body": {"stream": True}}, "body.stream: expected no stream", id="stream"),
        pytest.param({"custom_id": "same"}, "custom_id: expected a value used once, found 'same' again", id="twice"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write_batch(tmp_path / "in.jsonl", [build_row("same"), {**build_row("other"), **changes}])

    with pytest.raises(BatchInputError) as fault:
        read_input(path)

    assert str(fault.value).startswith(f"{path}:2: {words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "expected one request per line, found none", id="empty"),
        pytest.param(b"{", ":1: expected one JSON object, found column 2", id="half an object"),
        pytest.param(b"[]\n", ":1: expected one JSON object, found list", id="list"),
        pytest.param(b'"\xff"\n', ":1: expected one JSON object, found bytes that are no UTF-8", id="not UTF-8"),
        pytest.param(b"[" * 100_000, ":1: expected one JSON object, found something else", id="deep nesting"),
    ],
)
def test_what_is_no_batch_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)

    with pytest.raises(BatchInputError) as fault:
        read_input(path)

    assert words in str(fault.value)


def test_a_file_that_changes_under_a_running_batch_is_noticed(tmp_path: Path) -> None:
    path = write_batch(tmp_path / "in.jsonl", 2)
    batch = read_input(path)
    write_batch(path, [build_row("else-0"), build_row("else-1")])

    with pytest.raises(BatchInputError, match="expected the file as it was at the start"):
        batch.read(1)
