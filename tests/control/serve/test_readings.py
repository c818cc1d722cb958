"""Absent stays absent: a pod without a fresh value is missing, and a sum with a gap is not told at all."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_contract.metric_names import KV_USE_RATIO, REQUESTS_WAITING
from windlass_operator.domain import labels
from windlass_operator.serve.readings import (
    NoValue,
    Replica,
    keep_known,
    parse_replica,
    read_pods,
    read_service,
    read_services,
)
from windlass_operator.serve.samples import PodKey, Sample
from windlass_operator.serve.selectors import parse_selector

NOW = 1000.0
FRESH = {"now_s": NOW, "max_age_s": 60.0}


def replica(name: str = "a", service: str = "chat", namespace: str = "team-a", **more: Any) -> Replica:
    return Replica(**{"key": PodKey(namespace, name), "service": service, "labels": {}, "ready": True, **more})


def samples(**ages_and_values: tuple[float, float]) -> dict[PodKey, Sample]:
    """`a=(age, value)`."""
    return {PodKey("team-a", name): Sample(value, NOW - age) for name, (age, value) in ages_and_values.items()}


def test_pods_are_told_in_the_order_of_their_names() -> None:
    found = read_pods(REQUESTS_WAITING, [replica("b"), replica("a")], samples(a=(1, 4), b=(2, 5)), **FRESH)

    assert [(item.key.name, item.sample.value) for item in found] == [("a", 4), ("b", 5)]


@pytest.mark.parametrize(
    ("age_s", "told"),
    [
        pytest.param(0, True, id="new"),
        pytest.param(60, True, id="as old as may be"),
        pytest.param(60.1, False, id="too old"),
        pytest.param(-30, True, id="a clock that is ahead"),
        pytest.param(-61, False, id="a clock that cannot be right"),
    ],
)
def test_a_stale_value_is_absent(age_s: float, told: bool) -> None:
    found = read_pods(REQUESTS_WAITING, [replica("a"), replica("b")], samples(a=(age_s, 4), b=(1, 5)), **FRESH)

    assert [item.key.name for item in found] == (["a", "b"] if told else ["b"])


@pytest.mark.parametrize(
    ("replicas", "known"),
    [
        pytest.param([], {}, id="no replicas"),
        pytest.param([replica("a")], {}, id="never read"),
        pytest.param([replica("a")], samples(a=(61, 4)), id="stale"),
        pytest.param([replica("a")], samples(b=(1, 4)), id="of another pod"),
        pytest.param([replica("a", namespace="team-b")], samples(a=(1, 4)), id="of another namespace"),
    ],
)
def test_without_any_fresh_value_there_is_no_answer(replicas: list[Replica], known: dict[PodKey, Sample]) -> None:
    with pytest.raises(NoValue, match=f"found none for {len(replicas)} matching replicas"):
        read_pods(REQUESTS_WAITING, replicas, known, **FRESH)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [pytest.param(REQUESTS_WAITING, 6, id="counts add up"), pytest.param(KV_USE_RATIO, 3, id="shares are averaged")],
)
def test_a_service_is_the_sum_or_the_mean_of_its_replicas(metric: str, expected: float) -> None:
    known = samples(a=(10, 2), b=(5, 4), other=(1, 100))
    replicas = [replica("a"), replica("b"), replica("other", "embed")]

    found = read_service(metric, "team-a", "chat", replicas, known, **FRESH)

    assert found.sample == Sample(expected, NOW - 10)


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        pytest.param([], "expected a ready replica, found none", id="no replicas"),
        pytest.param([replica("a", ready=False)], "expected a ready replica, found none", id="none ready"),
        pytest.param([replica("a", leaving=True)], "expected a ready replica, found none", id="all leave"),
        pytest.param([replica("a"), replica("b")], "from all 2 ready replicas, found 1", id="one was not read"),
        pytest.param([replica("a"), replica("old")], "from all 2 ready replicas, found 1", id="one is stale"),
    ],
)
def test_a_sum_with_a_gap_is_not_told(replicas: list[Replica], words: str) -> None:
    with pytest.raises(NoValue, match=words):
        read_service(REQUESTS_WAITING, "team-a", "chat", replicas, samples(a=(1, 4), old=(61, 9)), **FRESH)


def test_replicas_that_start_or_leave_do_not_hold_the_sum_up() -> None:
    replicas = [replica("a"), replica("starts", ready=False), replica("leaves", leaving=True)]

    assert read_service(REQUESTS_WAITING, "team-a", "chat", replicas, samples(a=(1, 4)), **FRESH).sample.value == 4


def test_external_metrics_are_selected_by_namespace_and_service() -> None:
    replicas = [replica("a"), replica("b", "embed"), replica("c", namespace="team-b")]
    known = samples(a=(1, 4), b=(1, 7))

    def read(text: str) -> list[tuple[str, float]]:
        found = read_services(REQUESTS_WAITING, "team-a", parse_selector(text), replicas, known, **FRESH)
        return [(item.service, item.sample.value) for item in found]

    assert read("") == [("chat", 4), ("embed", 7)]
    assert read("service=embed,namespace=team-a") == [("embed", 7)]
    with pytest.raises(NoValue, match="found none"):
        read("namespace=team-b")


def test_one_service_without_a_value_takes_the_external_sum_away() -> None:
    with pytest.raises(NoValue, match="embed"):
        read_services(REQUESTS_WAITING, "team-a", (), [replica("a"), replica("b", "embed")], samples(a=(1, 4)), **FRESH)


def test_a_replica_that_could_not_be_read_keeps_its_last_value_until_it_is_gone() -> None:
    old, new = samples(a=(20, 1), b=(20, 2), gone=(20, 3)), samples(b=(1, 5))

    assert keep_known(old, new, [replica("a"), replica("b")]) == samples(a=(20, 1), b=(1, 5))


def test_a_pod_becomes_a_replica() -> None:
    pod = {
        "metadata": {"name": "chat-1", "namespace": "team-a", "labels": {labels.SERVICE: "chat"}},
        "status": {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    leaving = {"metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}

    found = parse_replica(pod)

    assert (found.key, found.service, found.ip) == (PodKey("team-a", "chat-1"), "chat", "10.0.0.7")
    assert (found.ready, found.leaving) == (True, False)
    assert parse_replica(leaving).leaving
    assert (parse_replica(leaving).ip, parse_replica(leaving).ready) == ("", False)
