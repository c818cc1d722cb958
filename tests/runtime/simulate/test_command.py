"""`windlass-runtime simulate` as a process: what it weighs, how it dies, what it refuses."""

import contextlib
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import psutil
import pytest

from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime.main import command_line

COMMAND = [sys.executable, "-m", "windlass_runtime", "simulate", "--log-level", "warning"]


class Process:
    """A running simulated replica."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.url = str(self.event("listening")["url"])
        self.event("ready")

    def event(self, name: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert event["event"] == name
        return event

    def complete(self, model: str = "simulated") -> dict[str, Any]:
        body = json.dumps({"model": model, "prompt": "hi"}).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Process]:
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Process(process)
    finally:
        process.kill()
        process.communicate()


LOCAL = ("--host", "127.0.0.1", "--port", "0")


def test_a_replica_is_light_enough_to_start_by_the_hundred_and_drains_on_sigterm() -> None:
    with running(*LOCAL) as replica:
        replica.complete()
        measured = psutil.Process(replica.process.pid)
        loaded = {Path(part.path).name for part in measured.memory_maps()}

        assert not any("torch" in name for name in loaded)
        assert measured.memory_info().rss < 80 * 2**20
        replica.process.send_signal(signal.SIGTERM)
        replica.event("stopped")
        assert replica.process.wait(30) == 0


def test_a_launch_spec_of_the_control_plane_starts_it_as_it_starts_a_real_one(tmp_path: Path) -> None:
    path = tmp_path / "launch-spec.json"
    path.write_text(LaunchSpec("hf://a/b", "chat", tenant="acme", host="127.0.0.1", port=0).to_json())

    with running("--launch-spec", str(path)) as replica:
        assert replica.complete("chat")["model"] == "chat"


def test_a_scripted_crash_ends_the_process_in_the_middle_of_a_request() -> None:
    with running(*LOCAL, "--crash-after-requests", "2") as replica:
        replica.complete()

        with pytest.raises((ConnectionError, urllib.error.URLError)):
            replica.complete()

        assert replica.process.wait(30) == 1
        assert replica.process.stderr is not None
        assert "simulated crash: 2 sequences have begun" in replica.process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        pytest.param(["--profile", "h100"], "expected a file or one of h200-8b, l4-8b, instant", id="no such profile"),
        pytest.param(["--jitter", "2"], "options: jitter: input should be less than or equal to 1", id="out of range"),
        pytest.param(["--answer", "songs"], "answer: input should be 'words' or 'clock'", id="unknown answer"),
        pytest.param(["--launch-spec", "none.json"], "none.json", id="no such launch spec"),
        pytest.param(["--launch-spec", "x", "--port", "1"], "drop --port", id="options beside a launch spec"),
    ],
)
def test_wrong_usage_ends_with_two_and_says_what_is_wrong(arguments: list[str], finding: str) -> None:
    result = click.testing.CliRunner().invoke(command_line, ["simulate", *arguments])

    assert result.exit_code == 2
    assert finding in result.output


def test_the_figures_in_force_can_be_shown() -> None:
    arguments = ["simulate", "--profile", "l4-8b", "--load-s", "1", "--show-profile"]

    result = click.testing.CliRunner().invoke(command_line, arguments)

    assert json.loads(result.stdout)["load_s"] == 1
    assert json.loads(result.stdout)["kv_pages"] == 800
