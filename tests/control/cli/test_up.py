"""`windlass up` as users run it: a process of its own, real files, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import psutil
import pytest

from support import checkpoints, letters

TESTS = pathlib.Path(__file__).resolve().parents[2]

TENANT = """
apiVersion: windlass.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec: {namespaces: [team-acme]}
"""
SERVICE = """
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata: {name: chat, namespace: team-acme}
spec:
  model: {uri: "file://../model"}
  replicas: %d
  limits: {maxRunningRequests: %d}
  drain: {timeoutSeconds: 5}
"""

Event = dict[str, Any]


class Up:
    """A running `windlass up -o json`."""

    def __init__(self, folder: pathlib.Path, *options: str, **env: str) -> None:
        command = [sys.executable, "-m", "windlass_operator", "up", str(folder), "-o", "json", "--port", "0", *options]
        environment = {**os.environ, "XDG_STATE_HOME": str(folder.parent / "state"), "OMP_NUM_THREADS": "1", **env}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.events: list[Event] = []
        self._words = ""
        self._incoming: queue.Queue[Event | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, accept: Callable[[Event], bool], within_s: float = 30.0) -> Event:
        """Return the next event that fits."""
        deadline_s = time.monotonic() + within_s
        while True:
            event = self._incoming.get(timeout=max(0.01, deadline_s - time.monotonic()))
            assert event is not None, f"ended early: {self.events[-3:]}"
            self.events.append(event)
            if accept(event):
                return event

    def wait_for_service(self, phase: str, ready: str) -> Event:
        """Wait until the service's row says so."""
        return self.wait_for(
            lambda event: (
                event.get("object", "").startswith("InferenceService")
                and (event["phase"], event["ready"]) == (phase, ready)
            )
        )

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Signal and wait."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=20)

    def close(self) -> str:
        """Make sure that it is gone; return what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.kill()
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            with self.process.stderr as errors:
                self._words = errors.read()
        self.process.wait()
        self._reader.join()
        return self._words

    def replicas(self) -> list[psutil.Process]:
        """The replica processes."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "--launch-spec" in child.cmdline()]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._incoming.put(json.loads(line))
        self._incoming.put(None)


@contextlib.contextmanager
def running(folder: pathlib.Path, *options: str, **env: str) -> Iterator[Up]:
    up = Up(folder, *options, **env)
    try:
        yield up
    finally:
        up.close()


@contextlib.contextmanager
def faking(folder: pathlib.Path, behaviour: str = "normal", *options: str) -> Iterator[Up]:
    """The same with replicas that hold no model."""
    env = {"WINDLASS_RUNTIME_MODULE": "support.replica", "PYTHONPATH": str(TESTS), "FAKE_REPLICA": behaviour}
    with running(folder, *options, **env) as up:
        yield up


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two documents that belong together."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "tenant.yaml").write_text(TENANT)
    (files / "service.yaml").write_text(SERVICE % (1, 8))
    return files


def write_model(folder: pathlib.Path) -> None:
    """A tiny random Llama whose tokens are bytes."""
    model = checkpoints.write_checkpoint(
        folder.parent / "model", vocab_size=letters.VOCABULARY, bos_token_id=letters.BOS, eos_token_id=letters.EOS
    )
    letters.build_core().save(str(model / "tokenizer.json"))
    checkpoints.write_json(model / "tokenizer_config.json", letters.build_config())


def is_ready(event: Event) -> bool:
    return bool(event["event"] == "ready")


def ask(ready: Event, text: str = "hello") -> str:
    """One streamed answer through the gateway, with the key of this run."""
    (service,) = ready["services"]
    key = json.loads(pathlib.Path(ready["keyFile"]).read_text())[service["owner"]]
    with openai.OpenAI(api_key=key, base_url=service["url"], max_retries=0, timeout=20) as client:
        stream = client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": text}], stream=True, max_tokens=8, temperature=0
        )
        chunks = list(stream)
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_a_real_model_is_served_to_a_real_client_until_sigterm(folder: pathlib.Path) -> None:
    write_model(folder)

    with running(folder, "--once", "--timeout", "90") as up:
        ready = up.wait_for(is_ready, within_s=90)
        answer = ask(ready)
        replicas = up.replicas()
        code = up.end()

    assert len(answer) > 0
    assert ready["objects"] > 5
    assert code == 0
    assert not any(replica.is_running() for replica in replicas)


def test_limits_of_a_tenant_hold_at_once_and_change_with_its_file(folder: pathlib.Path) -> None:
    limited = TENANT.replace("[team-acme]}", "[team-acme], rates: {requestsPerMinute: 2}}")
    (folder / "tenant.yaml").write_text(limited)

    with faking(folder) as up:
        ready = up.wait_for(is_ready)
        ask(ready)
        ask(ready)
        with pytest.raises(openai.RateLimitError, match="Tenant acme may use 2 requests per minute"):
            ask(ready)
        (folder / "tenant.yaml").write_text(TENANT)
        up.wait_for(lambda event: event["event"] == "reloaded")
        time.sleep(0.5)  # the gateway looks at its table ten times a second
        answers = [ask(ready) for _ in range(3)]

    assert all(answers)


def test_a_broken_checkpoint_fails_with_the_words_of_the_runtime(folder: pathlib.Path) -> None:
    write_model(folder)
    (folder.parent / "model" / "config.json").unlink()

    with running(folder, "--once", "--timeout", "90") as up:
        failed = up.wait_for(lambda event: event["event"] == "failed", within_s=90)
        code = up.process.wait(timeout=20)

    assert "config.json" in failed["reason"]
    assert failed["reason"].startswith("InferenceService team-acme/chat: ")
    assert code == 1


def test_edits_are_applied_and_broken_edits_are_reported_and_ignored(folder: pathlib.Path) -> None:
    with faking(folder) as up:
        ready = up.wait_for(is_ready)
        (folder / "service.yaml").write_text(SERVICE % (2, 8))
        up.wait_for_service("Ready", "2/2")
        (folder / "service.yaml").write_text(SERVICE % (2, 0))
        problem = up.wait_for(lambda event: event["event"] == "problem")
        answer = ask(ready)
        (folder / "service.yaml").unlink()
        removed = up.wait_for(lambda event: event.get("phase") == "Removed")
        code = up.end(signal.SIGINT)

    assert problem["path"] == "spec.limits.maxRunningRequests"
    assert answer.startswith("chat0 ")
    assert removed["object"] == "InferenceService team-acme/chat"
    assert code == 0


def test_a_killed_replica_is_replaced(folder: pathlib.Path) -> None:
    with faking(folder) as up:
        ready = up.wait_for(is_ready)
        (victim,) = up.replicas()
        victim.kill()
        up.wait_for(lambda event: event.get("phase") == "ReplicaFailed")
        up.wait_for_service("Ready", "1/1")
        answer = ask(ready)
        (successor,) = up.replicas()

    assert successor.pid != victim.pid
    assert answer.startswith("chat0 ")


def test_killing_it_leaves_no_process_behind(folder: pathlib.Path) -> None:
    with faking(folder) as up:
        up.wait_for(is_ready)
        children = psutil.Process(up.process.pid).children(recursive=True)
        up.process.kill()
        gone, alive = psutil.wait_procs(children, timeout=5)

    assert len(gone) == 2, "one replica and the gateway"
    assert alive == []


def test_keys_are_kept_from_other_users(folder: pathlib.Path) -> None:
    with faking(folder) as up:
        ready = up.wait_for(is_ready)
        file = pathlib.Path(ready["keyFile"])
        mode, folder_mode = stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)
        (key,) = json.loads(file.read_text()).values()
        up.end()
        words = up.close()

    assert (mode, folder_mode) == (0o600, 0o700)
    assert key not in json.dumps(up.events) + words
    assert not any(key in path.read_text() for path in file.parent.rglob("*.log"))


def test_a_second_run_on_the_same_files_is_refused(folder: pathlib.Path) -> None:
    with faking(folder) as up:
        up.wait_for(lambda event: event["event"] == "state")
        with faking(folder) as second:
            code = second.process.wait(timeout=20)
            words = second.close()

    assert code == 1
    assert "another `windlass up`" in words


def test_a_port_in_use_is_told(folder: pathlib.Path) -> None:
    with faking(folder) as up:
        port = up.wait_for(is_ready)["url"].rpartition(":")[2]
        with faking(folder, "normal", "--port", port, "--state-dir", str(folder.parent / "second")) as second:
            code = second.process.wait(timeout=20)
            words = second.close()

    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in words


def test_broken_files_are_all_reported_and_nothing_starts(folder: pathlib.Path) -> None:
    (folder / "service.yaml").write_text(SERVICE % (-1, 0))

    with faking(folder) as up:
        code = up.process.wait(timeout=20)
        words = up.close()

    assert code == 1
    assert "spec.replicas" in words
    assert "spec.limits.maxRunningRequests" in words


def test_a_gpu_that_this_machine_lacks_is_told(folder: pathlib.Path) -> None:
    (folder / "class.yaml").write_text(
        "apiVersion: windlass.dev/v1alpha1\nkind: GPUClass\nmetadata: {name: imaginary}\n"
        "spec: {nodeSelector: {nvidia.com/gpu.product: Imaginary}, memory: 80Gi, computeCapability: '9.0'}\n"
    )
    (folder / "service.yaml").write_text(SERVICE % (1, 8) + "  accelerator: {classes: [imaginary]}\n")

    with faking(folder) as up:
        row = up.wait_for_service("Ready", "1/1")

    assert "this machine carries no GPU of the listed classes" in row["message"]


def test_a_service_that_sleeps_is_woken_by_the_first_request(folder: pathlib.Path) -> None:
    scaling = "scaling: {minReplicas: 0, maxReplicas: 2}"
    (folder / "service.yaml").write_text((SERVICE % (1, 8)).replace("replicas: 1", scaling))

    with faking(folder) as up:
        ready = up.wait_for(is_ready)
        asleep = up.replicas()
        answer = ask(ready)
        awake = up.replicas()

    assert len(asleep) == 0
    assert len(answer) > 0
    assert len(awake) == 1
