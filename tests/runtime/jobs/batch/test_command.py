"""`windlass-runtime batch` as processes: workers are killed, stopped and slow, and every row comes out once."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from support.batches import build_row, ids_of, read_rows, write_batch
from support.openai_server import build_spec, listening
from windlass_runtime.jobs.batch import command
from windlass_runtime.jobs.batch.worker import Assignment
from windlass_runtime.main import command_line
from windlass_runtime.simulate.load import build_loader
from windlass_runtime.simulate.profile import NAMED, build_profile

SLOW = {"answer_tokens": 20, "step_s": 0.01}
"""An answer takes 0.2 s."""


@contextlib.contextmanager
def serving(**profile: Any) -> Iterator[str]:
    """URL of a simulated replica."""
    load = build_loader(build_profile(NAMED["instant"], profile, "test"))
    with listening(load, build_spec(served_name="simulated")) as events:
        url = str(events.get(timeout=30)["url"])
        assert events.get(timeout=30)["event"] == "ready"
        yield url


class Worker:
    """One running worker."""

    def __init__(self, url: str, path: Path, results: Path, *options: str) -> None:
        arguments = ["batch", url, "--input", str(path), "--results", str(results), "-o", "json", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "windlass_runtime", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> tuple[int, dict[str, Any]]:
        out, _ = self.process.communicate(timeout=100)
        return self.process.returncode, json.loads(out) if out else {}

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def wait_for_rows(results: Path, least: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if sum(file.read_bytes().count(b"\n") for file in (results / "journal").iterdir()) >= least:
                return
        time.sleep(0.01)
    pytest.fail(f"fewer than {least} rows in 90 s")


def long_rows(count: int) -> list[dict[str, Any]]:
    body = {"model": "simulated", "prompt": "hi", "max_tokens": 20}
    return [build_row(f"row-{number}", body=body) for number in range(count)]


def test_killed_workers_lose_nothing_and_duplicate_nothing(tmp_path: Path) -> None:
    rows = [*long_rows(59), build_row("odd", body={"model": "none"})]
    path, results = write_batch(tmp_path / "in.jsonl", rows), tmp_path / "out"
    with serving(**SLOW) as url:
        options = [("--shards", "3", "--shard", str(shard), "--concurrency", "4") for shard in range(3)]
        workers = [Worker(url, path, results, *each) for each in options]
        wait_for_rows(results, 10)
        for worker in workers[:2]:
            worker.kill()
        workers[:2] = [Worker(url, path, results, *each) for each in options[:2]]
        wait_for_rows(results, 25)
        workers[0].kill()
        workers[0] = Worker(url, path, results, *options[0])
        endings = [worker.finish() for worker in workers]

    assert [code for code, _ in endings] == [0, 0, 0]
    assert ids_of(read_rows(results)) == [f"row-{number}" for number in range(59)]
    assert ids_of(read_rows(results, "errors")) == ["odd"]
    # A worker that is done before another one has begun leaves; whoever is last completes the batch.
    summaries = [ending["batch"] | {"computed_twice": 0} for _, ending in endings if ending["status"] == "completed"]
    assert summaries
    assert all(one == {"rows": 60, "succeeded": 59, "failed": 1, "computed_twice": 0} for one in summaries)


def test_rows_of_a_worker_that_hangs_are_computed_by_another(tmp_path: Path) -> None:
    path, results = write_batch(tmp_path / "in.jsonl", 40), tmp_path / "out"
    both = ("--shards", "2", "--straggler-after-s", "1")
    with serving(answer_tokens=4) as url, socket.create_server(("127.0.0.1", 0)) as silent:
        hung = Worker(f"http://127.0.0.1:{silent.getsockname()[1]}", path, results, *both, "--shard", "1")
        wait_for_rows(results, 0)
        code, ending = Worker(url, path, results, *both, "--shard", "0").finish()
        slow_code, slow_ending = hung.finish()

    assert (code, ending["computed"]) == (0, 40)
    assert (slow_code, slow_ending["computed"], slow_ending["status"]) == (0, 0, "completed")
    assert ids_of(read_rows(results)) == [f"row-{number}" for number in range(40)]


def test_a_stopped_worker_finishes_what_is_under_way_and_says_how_to_go_on(tmp_path: Path) -> None:
    path, results = write_batch(tmp_path / "in.jsonl", long_rows(40)), tmp_path / "out"
    with serving(**SLOW) as url:
        worker = Worker(url, path, results, "--concurrency", "4")
        wait_for_rows(results, 4)
        worker.process.send_signal(signal.SIGTERM)
        code, ending = worker.finish()
        done = ending["shard_done"]
        again, finished = Worker(url, path, results).finish()

    assert (code, ending["status"]) == (1, "stopped")
    assert 8 <= done < 40
    assert (again, finished["computed"]) == (0, 40 - done)
    assert finished["batch"] == {"rows": 40, "succeeded": 40, "failed": 0, "computed_twice": 0}


def test_a_worker_makes_room_for_a_shard_that_nobody_has_begun(tmp_path: Path) -> None:
    path, results = write_batch(tmp_path / "in.jsonl", 30), tmp_path / "out"
    with serving() as url:
        endings = [Worker(url, path, results, "--shards", "2", "--shard", shard).finish() for shard in ("1", "0")]

    assert [(code, ending["status"]) for code, ending in endings] == [(0, "waiting"), (0, "completed")]
    assert sum(ending["computed"] for _, ending in endings) == 30


def test_a_model_is_served_in_the_workers_own_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = build_loader(build_profile(NAMED["instant"], {}, "test"))
    path, results = write_batch(tmp_path / "in.jsonl", 12), tmp_path / "out"
    options = {
        "input": path, "results": results, "assignment": Assignment(concurrency=4),
        "patience": command.Patience(3, 60.0, 60.0),
    }  # fmt: skip
    job = command.BatchJob(server=build_spec(served_name="simulated"), **options)  # type: ignore[arg-type]

    command.run(job, load, as_json=True)
    command.run(job, lambda _: pytest.fail("a finished batch loads no model"), as_json=False)

    first, _, second = capsys.readouterr().out.partition("\n")
    assert json.loads(first)["batch"]["succeeded"] == 12
    assert "batch complete: 12 of 12 rows succeeded, 0 failed" in second
    assert read_rows(results)[0]["response"]["body"]["object"] == "text_completion"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["http://x", "--precision", "INT8"], "a server decides itself how it runs", id="options"),
        pytest.param([], "give either MODEL or --launch-spec FILE", id="no model"),
        pytest.param(["http://x", "--shards", "2", "--shard", "2"], "--shard: expected less than", id="no such shard"),
        pytest.param(["folder", "--api-key-file", "key"], "expected the URL of a server", id="key for a model"),
        pytest.param(["http://x"], "method: expected 'POST', found 'PUT'", id="bad input"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_with_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    path = write_batch(tmp_path / "in.jsonl", [build_row("a", method="PUT")])
    files = ["--input", str(path), "--results", str(tmp_path / "out")]

    result = click.testing.CliRunner().invoke(command_line, ["batch", *arguments, *files])

    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())


def test_the_shard_is_the_index_that_kubernetes_gives_the_pod(tmp_path: Path) -> None:
    path = write_batch(tmp_path / "in.jsonl", 1)
    files = ["--input", str(path), "--results", str(tmp_path / "out"), "--shards", "2"]

    result = click.testing.CliRunner(env={"JOB_COMPLETION_INDEX": "2"}).invoke(
        command_line, ["batch", "http://x", *files]
    )

    assert "--shard: expected less than --shards 2, found 2" in result.output
