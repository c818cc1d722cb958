"""`windlass-runtime calibrate` and `report` as real processes: exit codes, JSON, and a SIGKILL in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import letters
from support.checkpoints import write_checkpoint, write_json
from windlass_runtime.jobs.work_folder import PROGRESS_FILE
from windlass_runtime.quant.recipe import DATA_FILE, JSON_FILE

COMMAND = [sys.executable, "-m", "windlass_runtime"]
LOOSE = [
    "--gate-perplexity-loss",
    "1",
    "--gate-divergence",
    "1",
    "--gate-top1-agreement",
    "0",
    "--gate-probe-loss",
    "1",
]
SMALL = ["--sequences", "8", "--heldout-sequences", "4", "--sequence-tokens", "32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": letters.VOCABULARY}
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=8, **shapes)
    letters.build_core().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", letters.build_config())
    draw = random.Random(0)
    (folder / "text.txt").write_text("".join(draw.choices("abcdefgh ", k=3000)))
    return folder


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def run(*arguments: str) -> tuple[int, str, str]:
    with start(*arguments) as process:
        out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def calibrate(model: Path, target: Path, *more: str) -> tuple[int, str, str]:
    return run("calibrate", str(model), "--data", str(model / "text.txt"), "--recipe", str(target), *SMALL, *more)


def content(folder: Path) -> tuple[bytes, bytes]:
    return (folder / DATA_FILE).read_bytes(), (folder / JSON_FILE).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(400)  # five processes that import torch
def test_a_recipe_survives_a_kill_and_can_be_reported(model: Path, tmp_path: Path) -> None:
    code, out, _ = calibrate(model, tmp_path / "whole", "--precision", "INT4", "-o", "json", *LOOSE)
    assert code == 0
    summary = json.loads(out)
    assert summary["precision"] == "INT4"
    assert summary["formats"]["INT4"] == 1 + 8 * 3

    target, work = tmp_path / "killed", tmp_path / "killed.partial"
    options = ["--data", str(model / "text.txt"), "--recipe", str(target), "--precision", "INT4", *SMALL, *LOOSE]
    with start("calibrate", str(model), *options) as process:
        deadline = time.monotonic() + 100
        while not (work / PROGRESS_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not target.exists()
    code, out, err = calibrate(model, target, "--precision", "INT4", *LOOSE)

    assert code == 0
    assert "0/10 embedding" not in err  # went on, and did not begin again
    assert "passed its quality gate" in out
    assert content(target) == content(tmp_path / "whole")

    code, out, _ = run("report", str(target), "--target", str(tmp_path / "report"), "-o", "json")
    assert code == 0
    assert json.loads(out)["recipes"]["killed"]["bytes"] == summary["sizes"]["recipe"]


def test_a_missed_gate_is_exit_code_1_and_one_line(model: Path, tmp_path: Path) -> None:
    code, out, err = calibrate(model, tmp_path / "recipe", *LOOSE, "--gate-divergence", "0")

    assert (code, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith(
        f"windlass-runtime: recipe {tmp_path / 'recipe.rejected'}: divergence: expected at most 0 nats"
    )
    assert "Worst tensors: model.layers." in last


def test_a_text_that_is_not_there_is_exit_code_1(model: Path, tmp_path: Path) -> None:
    code, _, err = run("calibrate", str(model), "--data", str(tmp_path / "no.txt"), "--recipe", str(tmp_path / "r"))

    assert code == 1
    assert "no.txt: expected UTF-8 text, found" in err
