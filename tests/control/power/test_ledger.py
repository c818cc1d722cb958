from __future__ import annotations

import json
from pathlib import Path

import pytest

from windlass_operator.power.ledger import FILE_NAME, UNCHANGED, Found, Ledger, LedgerError, read_boot_id

CHANGED = Found(power_mw=700_000, clock_capped=True)


def test_what_was_noted_is_there_after_a_crash(tmp_path: Path) -> None:
    Ledger(tmp_path, "boot-1").note("GPU-a", CHANGED)

    again = Ledger(tmp_path, "boot-1")

    assert again.found("GPU-a") == CHANGED
    assert again.found("GPU-b") == UNCHANGED
    assert again.changed == ("GPU-a",)


def test_a_restored_gpu_leaves_the_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "boot-1")
    ledger.note("GPU-a", CHANGED)

    ledger.note("GPU-a", UNCHANGED)

    assert json.loads((tmp_path / FILE_NAME).read_text())["gpus"] == {}


def test_after_a_reboot_nothing_is_left_to_restore(tmp_path: Path) -> None:
    Ledger(tmp_path, "boot-1").note("GPU-a", CHANGED)

    assert Ledger(tmp_path, "boot-2").changed == ()


def test_where_the_kernel_does_not_tell_boots_apart_everything_is_restored(tmp_path: Path) -> None:
    Ledger(tmp_path, "boot-1").note("GPU-a", CHANGED)

    assert Ledger(tmp_path, read_boot_id(tmp_path / "none")).changed == ("GPU-a",)


def test_an_unchanged_entry_is_not_written_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "boot-1")
    ledger.note("GPU-a", CHANGED)
    (tmp_path / FILE_NAME).unlink()

    ledger.note("GPU-a", CHANGED)

    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{", r"expected the limits that an earlier run found.*nvidia-smi --power-limit", id="cut off"),
        pytest.param('{"version": 2, "gpus": {}}', "version: expected 1, found 2", id="of a later release"),
        pytest.param("[]", "expected a file of this agent", id="of somebody else"),
        pytest.param('{"version": 1, "bootId": "", "gpus": {"a": 1}}', "expected a file of this agent", id="entry"),
    ],
)
def test_a_file_that_cannot_be_read_is_never_overwritten(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)

    with pytest.raises(LedgerError, match=words):
        Ledger(tmp_path, "boot-1")
    assert (tmp_path / FILE_NAME).read_text() == text


def test_a_folder_that_cannot_be_written_is_found_before_a_gpu_depends_on_it(tmp_path: Path) -> None:
    (tmp_path / "found.new").mkdir()

    with pytest.raises(LedgerError, match="expected a folder that keeps what GPUs were like before, found Is a dir"):
        Ledger(tmp_path, "boot-1").check()


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(LedgerError, match="expected a file, found Not a directory"):
        Ledger(tmp_path / "file", "boot-1")


def test_a_failed_write_leaves_the_entry_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state", "boot-1")
    (tmp_path / "state").write_text("a file in the way")

    with pytest.raises(LedgerError):
        ledger.note("GPU-a", CHANGED)
    assert ledger.found("GPU-a") == UNCHANGED
