"""Canaries of `windlass up`: simulated replicas as processes, a real gateway, real requests and counters."""

from __future__ import annotations

import json
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import pytest

from .test_up import TENANT, TESTS, Event, Up, running

SERVICE = """
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata: {name: chat, namespace: team-acme}
spec:
  model: {uri: "file:///models/good"}
  drain: {timeoutSeconds: 5}
  canaries:
    - name: next
      trafficPercent: %d
      model: {uri: "file:///models/%s"}
      analysis:
        intervalSeconds: 5
        startDelaySeconds: 2
        failureLimit: 1
        passes: 1
        minRequests: 10
        metrics: [{type: ErrorRate, threshold: 10}]
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    files = tmp_path / "files"
    files.mkdir()
    (files / "tenant.yaml").write_text(TENANT)
    return files


class Client:
    """Asks the service until told to stop."""

    def __init__(self, ready: Event) -> None:
        (service,) = ready["services"]
        self._url = service["url"]
        self._key = json.loads(pathlib.Path(ready["keyFile"]).read_text())[service["owner"]]
        self.answers: Counter[tuple[int, str]] = Counter()
        """By status and canary."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask_on)

    def ask(self, **headers: str) -> tuple[int, str]:
        body = json.dumps({"model": "chat", "prompt": "hi", "max_tokens": 3}).encode()
        sent = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json", **headers}
        request = urllib.request.Request(f"{self._url}/completions", data=body, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
                return answer.status, answer.headers.get("X-Windlass-Canary", "")
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.headers.get("X-Windlass-Canary", "")

    def __enter__(self) -> Client:
        while self.ask()[0] == 503:  # on a busy machine the gateway may read its table a moment later
            time.sleep(0.05)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask_on(self) -> None:
        while not self._stop.wait(0.02):
            self.answers[self.ask()] += 1


def simulating(folder: pathlib.Path) -> Any:
    env = {"WINDLASS_RUNTIME_MODULE": "support.simulated_replica", "PYTHONPATH": str(TESTS)}
    return running(folder, "--once", "--timeout", "60", **env)


def wait_for_canary(up: Up, words: str) -> Event:
    """The first row that says so, also one that came already."""

    def says_so(event: Event) -> bool:
        return f"canary next: {words}" in event.get("message", "")

    return next((event for event in up.events if says_so(event)), None) or up.wait_for(says_so, within_s=60)


@pytest.mark.slow
def test_a_bad_canary_gets_its_share_and_is_aborted(folder: pathlib.Path) -> None:
    (folder / "service.yaml").write_text(SERVICE % (40, "bad"))

    with simulating(folder) as up:
        ready = up.wait_for(lambda event: event["event"] == "ready", within_s=60)
        wait_for_canary(up, "Analysing, 40 %")
        with Client(ready) as client:
            row = wait_for_canary(up, "Aborted, 0 %")
        share = sum(count for (_, canary), count in client.answers.items() if canary) / client.answers.total()
        later = {client.ask() for _ in range(10)}
        asked_for = client.ask(**{"X-Windlass-Canary": "next"})
        deadline = time.monotonic() + 30
        while len(up.replicas()) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        replicas = len(up.replicas())

    assert 0.3 < share < 0.5
    assert client.answers[500, "next"] > 0
    # 503: on a machine that is too busy for a readiness probe no replica counts as ready.
    assert {answer[0] for answer in client.answers if answer[1] == ""} <= {200, 503}
    assert client.answers[503, ""] < 0.1 * client.answers.total()
    assert "ErrorRate" in row["message"]
    assert later == {(200, "")}
    assert asked_for == (404, "")
    assert replicas == 1, "the canary gave its place back"


@pytest.mark.slow
def test_a_good_canary_stays_and_one_without_a_share_answers_those_who_ask(folder: pathlib.Path) -> None:
    (folder / "service.yaml").write_text(SERVICE % (50, "good"))

    with simulating(folder) as up:
        ready = up.wait_for(lambda event: event["event"] == "ready", within_s=60)
        wait_for_canary(up, "Analysing, 50 %")
        with Client(ready) as client:
            wait_for_canary(up, "Succeeded, 50 %")
        (folder / "service.yaml").write_text(SERVICE % (0, "good"))
        wait_for_canary(up, "Analysing, 0 %")
        dark = Counter(client.ask() for _ in range(20))
        asked_for = client.ask(**{"X-Windlass-Canary": "next"})

    assert {answer for answer in client.answers if answer[0] != 200} == set()
    assert dark == {(200, ""): 20}
    assert asked_for == (200, "next")
