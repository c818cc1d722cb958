"""The `windlass-runtime` command as a real process on a small random checkpoint."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import openai
import pytest

from support import letters
from support.checkpoints import write_checkpoint, write_json
from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime.main import command_line

COMMAND = [sys.executable, "-m", "windlass_runtime"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(
        tmp_path_factory.mktemp("models") / "tiny", vocab_size=letters.VOCABULARY, max_position_embeddings=4096
    )
    letters.build_core().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", letters.build_config())
    return folder


class Server:
    """A `windlass-runtime serve` process; its events in order."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.url = str(self.event("listening")["url"])

    def event(self, name: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert event["event"] == name
        return event

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=30)


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments, "--log-level", "warning"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def write_spec(folder: Path, where: Path, **changes: Any) -> str:
    spec = LaunchSpec(
        model_uri=folder.as_uri(), served_name="tiny", tenant="team-a", host="127.0.0.1", port=0, **changes
    )
    path = where / "launch-spec.json"
    path.write_text(spec.to_json())
    return str(path)


def test_sigterm_lets_a_running_stream_finish_and_ends_with_zero(folder: Path, tmp_path: Path) -> None:
    with serving("--launch-spec", write_spec(folder, tmp_path)) as server:
        assert server.event("ready")["seconds"] > 0
        with server.client() as client:
            request = {"model": "tiny", "prompt": "hi", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
            options = {"stream": True, "stream_options": {"include_usage": True}}
            stream = iter(client.completions.create(**request, **options))  # type: ignore[call-overload]
            next(stream)

            server.process.send_signal(signal.SIGTERM)

            assert list(stream)[-1].usage.completion_tokens == 200
        server.event("stopped")
        assert server.process.wait(10) == 0


def start_long_stream(client: openai.OpenAI) -> Iterator[Any]:
    """A stream of which one chunk has come, and which would go on for long."""
    request = {"model": "tiny", "prompt": "hi", "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    stream = iter(client.completions.create(**request, stream=True))  # type: ignore[call-overload]
    next(stream)
    return stream  # type: ignore[no-any-return]


def test_at_the_drain_deadline_a_running_stream_is_told_and_the_server_ends_with_zero(folder: Path) -> None:
    arguments = (str(folder), "--host", "127.0.0.1", "--port", "0", "--drain-timeout-s", "0.05")
    with serving(*arguments) as server, server.client() as client:
        server.event("ready")
        stream = start_long_stream(client)

        server.process.send_signal(signal.SIGTERM)

        with pytest.raises(openai.APIError, match="stopped before this request was done"):
            list(stream)
        assert server.process.wait(10) == 0


def test_a_second_signal_ends_everything_at_once(folder: Path) -> None:
    with serving(str(folder), "--host", "127.0.0.1", "--port", "0") as server, server.client() as client:
        server.event("ready")
        start_long_stream(client)

        server.process.send_signal(signal.SIGTERM)
        while not _is_draining(server.url):
            pass
        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(10) == 128 + signal.SIGTERM


def _is_draining(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health/ready", timeout=5).close()
    except urllib.error.HTTPError as exc:
        exc.close()
        return True
    return False


def test_a_checkpoint_that_does_not_load_ends_with_one_and_names_the_fault(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())

    done = subprocess.run([*COMMAND, "serve", str(broken), "--port", "0"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "windlass-runtime: " in done.stderr
    assert "safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_generate_prints_the_text_or_one_object(folder: Path) -> None:
    arguments = ["generate", str(folder), "hello", "--max-new-tokens", "12"]

    text = click.testing.CliRunner().invoke(command_line, arguments)
    result = click.testing.CliRunner().invoke(command_line, [*arguments, "-o", "json"])
    chat = click.testing.CliRunner().invoke(command_line, [*arguments, "-o", "json", "--chat"])

    assert text.exit_code == result.exit_code == chat.exit_code == 0
    report = json.loads(result.stdout)
    assert text.stdout == report["text"] + "\n"
    assert report["prompt_tokens"] == 5
    assert 1 <= report["completion_tokens"] <= 12
    assert report["finish_reason"] in ("stop", "length")
    assert json.loads(chat.stdout)["prompt_tokens"] == len("user: hello\nassistant: ") + 1


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        pytest.param(["serve"], "give either MODEL or --launch-spec FILE", id="nothing to serve"),
        pytest.param(["serve", "a", "--launch-spec", "b"], "give either", id="two models"),
        pytest.param(["serve", "--launch-spec", "none.json"], "none.json", id="no such file"),
        pytest.param(["serve", "--launch-spec", "x", "--port", "1"], "drop --port", id="options beside a file"),
        pytest.param(["serve", "a", "--port", "99999"], "99999", id="port"),
        pytest.param(["serve", "a", "--device", "tpu"], "tpu", id="device"),
        pytest.param(["generate", "a"], "PROMPT", id="no prompt"),
        pytest.param(["dance"], "dance", id="unknown command"),
    ],
)
def test_wrong_usage_ends_with_two_and_says_what_is_wrong(arguments: list[str], finding: str) -> None:
    result = click.testing.CliRunner().invoke(command_line, arguments)

    assert result.exit_code == 2
    assert finding in result.output


def test_a_launch_spec_with_a_bad_value_is_wrong_usage(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"version": 1, "model_uri": "x", "served_name": "x", "port": "high"}')

    result = click.testing.CliRunner().invoke(command_line, ["serve", "--launch-spec", str(path)])

    assert result.exit_code == 2
    assert "port: expected int, found 'high'" in result.output
