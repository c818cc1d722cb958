"""Tenants of a cohort on a real control plane: books that hold under fire, borrowing, returning, tiers and budgets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess
from support.services import API, APPS, condition, deployment, find, ready_pods, service, tenant, wait_ready

Run = Callable[..., str]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "cohort", "clean")]

OWNER, GUEST = "orchid", "birch"
"""A tenant with four H200s and one with two; names that no message to the other may hold."""
OWNERS_TEAM, GUESTS_TEAM = "team-orchid", "team-birch"
TOGETHER = 6


def owner(**spec: Any) -> Manifest:
    return tenant(OWNER, OWNERS_TEAM, gpus={"h200": 4}, cohort="research", **spec)


def guest(**spec: Any) -> Manifest:
    return tenant(GUEST, GUESTS_TEAM, gpus={"h200": 2}, cohort="research", **spec)


@pytest.fixture(scope="module")
def cohort(kube: KubeClient, fleet: None) -> Iterator[None]:
    """Both tenants, with their namespaces set up."""
    for item in (owner(), guest()):
        kube.apply(item)
    yield
    for name in (OWNER, GUEST):
        kube.delete(API, "Tenant", name)


@pytest.fixture(autouse=True)
def as_agreed(kube: KubeClient, cohort: None, operator: OperatorProcess) -> None:
    """Terms as they were, whatever the test before made of them."""
    for item in (owner(), guest()):
        kube.apply(item)
    for space in (OWNERS_TEAM, GUESTS_TEAM):
        eventually(lambda space=space: kube.get("v1", "ResourceQuota", "windlass-quota", space), bool)


def gpu_service(name: str, namespace: str, replicas: int, *, floor: int = 0, **spec: Any) -> Manifest:
    accelerator, rollout = {"classes": ["h200"]}, {"minAvailable": floor}
    return service(name, namespace, accelerator=accelerator, replicas=replicas, rollout=rollout, **spec)


def admitted(kube: KubeClient, name: str, namespace: str) -> dict[str, Any]:
    return condition(kube, name, "QuotaAdmitted", namespace)


def devices(kube: KubeClient) -> int:
    """GPUs that pods of the cohort hold or wait for, leaving ones included."""
    spaces = (OWNERS_TEAM, GUESTS_TEAM)
    return sum(len(kube.list("v1", "Pod", space, "windlass.dev/gpu-class=h200")) for space in spaces)


def use(kube: KubeClient, name: str) -> dict[str, int]:
    found = kube.get(API, "Tenant", name) or {}
    (books,) = [item for item in found.get("status", {}).get("gpus", ()) if item["name"] == "h200"] or [{}]
    return {key: value for key, value in books.items() if key != "name"}


@contextmanager
def watching(count: Callable[[], int]) -> Iterator[list[int]]:
    """Values of `count` while the block runs, taken as fast as the server answers."""
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(count())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_services_created_at_once_never_take_more_than_the_cohort_has(kube: KubeClient) -> None:
    spaces = [OWNERS_TEAM, GUESTS_TEAM]
    wanted = [gpu_service(f"s{number}", spaces[number % 2], 2) for number in range(8)]

    with watching(lambda: devices(kube)) as seen:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(kube.apply, wanted))
        verdicts = eventually(
            lambda: [admitted(kube, item["metadata"]["name"], item["metadata"]["namespace"]) for item in wanted],
            lambda found: all(found) and [one["status"] for one in found].count("True") == 3,
            timeout_s=60,
        )
        eventually(lambda: devices(kube), lambda held: held == TOGETHER)

    assert max(seen) <= TOGETHER
    refused = [one for one in verdicts if one["status"] == "False"]
    assert {one["reason"] for one in refused} == {"QuotaExceeded"}
    assert all("cohort research can lend" in one["message"] for one in refused)


def test_idle_devices_are_borrowed_and_come_back_when_their_owner_wants_them(kube: KubeClient) -> None:
    kube.apply(gpu_service("night", GUESTS_TEAM, TOGETHER, tier="Batch"))
    wait_ready(kube, "night", GUESTS_TEAM)
    assert admitted(kube, "night", GUESTS_TEAM)["reason"] == "Borrowing"
    eventually(lambda: use(kube, GUEST), lambda books: (books.get("used"), books.get("borrowed")) == (6, 4))
    eventually(lambda: use(kube, OWNER), lambda books: books.get("lent") == 4)

    with watching(lambda: devices(kube)) as seen:
        kube.apply(gpu_service("day", OWNERS_TEAM, 3))
        wait_ready(kube, "day", OWNERS_TEAM, timeout_s=60)

    assert max(seen) <= TOGETHER
    assert ready_pods(kube, "night", GUESTS_TEAM) == 3
    told = eventually(
        lambda: admitted(kube, "night", GUESTS_TEAM), lambda found: found.get("reason") == "QuotaReclaimed"
    )
    assert "needs 6 x h200, has 3" in told["message"]
    ready = condition(kube, "night", "Ready", GUESTS_TEAM)
    assert "a lender of cohort research" in ready["message"]
    assert OWNER not in str(find(kube, "night", GUESTS_TEAM)["status"])

    kube.delete(API, "InferenceService", "day", OWNERS_TEAM)

    wait_ready(kube, "night", GUESTS_TEAM, timeout_s=60)
    assert ready_pods(kube, "night", GUESTS_TEAM) == TOGETHER


def test_a_service_that_ran_on_borrowed_devices_alone_stops_and_returns(kube: KubeClient) -> None:
    kube.apply(gpu_service("base", GUESTS_TEAM, 2, floor=2))
    wait_ready(kube, "base", GUESTS_TEAM)
    kube.apply(gpu_service("extra", GUESTS_TEAM, 4, floor=1))
    wait_ready(kube, "extra", GUESTS_TEAM)

    kube.apply(gpu_service("all", OWNERS_TEAM, 4))

    wait_ready(kube, "all", OWNERS_TEAM, timeout_s=60)
    assert ready_pods(kube, "base", GUESTS_TEAM) == 2
    eventually(lambda: deployment(kube, "extra", GUESTS_TEAM)["spec"]["replicas"], lambda count: count == 0)
    stopped = condition(kube, "extra", "Ready", GUESTS_TEAM)
    assert (stopped["status"], stopped["reason"]) == ("False", "QuotaReclaimed")

    kube.delete(API, "InferenceService", "all", OWNERS_TEAM)

    wait_ready(kube, "extra", GUESTS_TEAM, timeout_s=60)


def test_a_higher_tier_takes_replicas_of_a_lower_one_down_to_its_floor(kube: KubeClient) -> None:
    kube.apply(guest(quota={"gpus": [{"name": "h200", "nominal": 2, "borrowingLimit": 2}]}))
    kube.apply(gpu_service("batch", GUESTS_TEAM, 4, floor=1, tier="Batch"))
    wait_ready(kube, "batch", GUESTS_TEAM)

    kube.apply(gpu_service("urgent", GUESTS_TEAM, 3, tier="Realtime"))

    wait_ready(kube, "urgent", GUESTS_TEAM, timeout_s=60)
    assert ready_pods(kube, "batch", GUESTS_TEAM) == 1
    told = eventually(lambda: admitted(kube, "batch", GUESTS_TEAM), lambda found: found.get("status") == "False")
    assert told["reason"] == "QuotaPreempted"


def test_budgets_hold_across_a_restart_of_the_operator(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(guest(preemption={"maxReplicasPerHour": 1}))
    kube.apply(gpu_service("night", GUESTS_TEAM, TOGETHER, tier="Batch"))
    wait_ready(kube, "night", GUESTS_TEAM)

    kube.apply(gpu_service("day", OWNERS_TEAM, 2))
    eventually(lambda: deployment(kube, "night", GUESTS_TEAM)["spec"]["replicas"], lambda count: count == 5)
    waits = eventually(
        lambda: condition(kube, "day", "Ready", OWNERS_TEAM), lambda found: "budget" in found.get("message", "")
    )
    assert waits["reason"] == "QuotaReturning"
    operator.kill()
    operator.start()
    eventually(operator.leads, bool, timeout_s=60)
    generation = kube.apply(gpu_service("day", OWNERS_TEAM, 3))["metadata"]["generation"]
    eventually(lambda: find(kube, "day", OWNERS_TEAM)["status"]["observedGeneration"], lambda seen: seen == generation)

    assert deployment(kube, "night", GUESTS_TEAM)["spec"]["replicas"] == 5
    assert len(deployment(kube, "night", GUESTS_TEAM)["metadata"]["annotations"]["windlass.dev/takings"].split()) == 1

    kube.apply(guest(preemption={"maxReplicasPerHour": 9}))

    wait_ready(kube, "day", OWNERS_TEAM, timeout_s=60)
    assert ready_pods(kube, "night", GUESTS_TEAM) == 3


def test_an_operator_that_died_finds_its_books_in_the_objects(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(gpu_service("night", GUESTS_TEAM, 5))
    wait_ready(kube, "night", GUESTS_TEAM)
    before = deployment(kube, "night", GUESTS_TEAM)["metadata"]["resourceVersion"]
    operator.kill()
    kube.apply(gpu_service("late", GUESTS_TEAM, 2, tier="Batch"))

    with watching(lambda: devices(kube)) as seen:
        operator.start()
        refused = eventually(lambda: admitted(kube, "late", GUESTS_TEAM), bool, timeout_s=60)

    assert (refused["status"], refused["reason"]) == ("False", "QuotaExceeded")
    assert refused["message"].startswith("needs 2 x h200, has 0; Tenant birch: nominal 2, 5 used")
    assert max(seen) == 5
    assert deployment(kube, "night", GUESTS_TEAM)["metadata"]["resourceVersion"] == before


def explained(kubectl: Run, name: str, folder: Path) -> list[dict[str, Any]]:
    """What `windlass explain` suggests for a service of the guest, from the objects that the cluster has."""
    kinds = "gpuclasses.windlass.dev,tenants.windlass.dev,inferenceservices.windlass.dev"
    file = folder / "objects.yaml"
    items = json.loads(kubectl("get", kinds, "-A", "-o", "json"))["items"]
    file.write_text(yaml.safe_dump_all([without_server_fields(item) for item in items]))
    command = [sys.executable, "-m", "windlass_operator", "explain", str(file), "-o", "json"]
    printed = subprocess.run(
        [*command, "--service", f"{GUESTS_TEAM}/{name}"], capture_output=True, text=True, check=False
    )
    assert printed.returncode == 0, printed.stdout + printed.stderr
    suggestions: list[dict[str, Any]] = json.loads(printed.stdout)["services"][0]["suggestions"]
    return suggestions


def without_server_fields(item: Manifest) -> Manifest:
    metadata = {key: value for key, value in item["metadata"].items() if key in ("name", "namespace")}
    return {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata, "spec": item["spec"]}


@pytest.mark.parametrize(
    "remedy", ["ListClass", "RaiseBorrowingLimit", "LowerReplicas", "LowerNeighbour", "RaiseNominal"]
)
def test_a_suggestion_that_is_applied_makes_the_service_ready(
    kube: KubeClient, kubectl: Run, tmp_path: Path, remedy: str
) -> None:
    gpus = [{"name": "h200", "nominal": 3, "borrowingLimit": 0}, {"name": "edge-l4", "nominal": 2}]
    kube.apply(guest(quota={"gpus": gpus}))
    kube.apply(gpu_service("first", GUESTS_TEAM, 2))
    wait_ready(kube, "first", GUESTS_TEAM)
    kube.apply(gpu_service("second", GUESTS_TEAM, 2))
    refused = eventually(lambda: condition(kube, "second", "Admitted", GUESTS_TEAM), bool)
    assert refused["reason"] == "QuotaExceeded"

    suggestions = explained(kubectl, "second", tmp_path)
    (change,) = [item["change"] for item in suggestions if item["remedy"] == remedy]
    scope = ["-n", change["namespace"]] if change["namespace"] else []
    kubectl("patch", change["kind"], change["name"], *scope, "--type=merge", "-p", json.dumps(change["patch"]))

    wait_ready(kube, "second", GUESTS_TEAM, timeout_s=60)
    assert suggestions[0]["order"][1:] in refused["message"]


def test_devices_that_strangers_hold_are_named_and_freeing_them_is_enough(kube: KubeClient) -> None:
    kube.apply(guest(quota={"gpus": [{"name": "edge-l4", "nominal": 2}]}))
    stranger = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": "default"},
        "spec": {
            "priorityClassName": "windlass-realtime",  # not to be preempted
            "nodeSelector": {"windlass.dev/pool": "edge"},
            "containers": [{"name": "c", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        },
    }
    kube.create(stranger)
    try:
        accelerator = {"classes": ["edge-l4"]}
        kube.apply(service("chat", GUESTS_TEAM, accelerator=accelerator, replicas=2))
        told = eventually(
            lambda: condition(kube, "chat", "Ready", GUESTS_TEAM),
            lambda found: "free 1 x edge-l4" in found.get("message", ""),
        )
        assert told["reason"] == "PodsPending"
    finally:
        kube.delete("v1", "Pod", "stranger", "default")

    wait_ready(kube, "chat", GUESTS_TEAM, timeout_s=60)


def test_the_api_server_itself_stops_what_comes_around_the_planner(kube: KubeClient) -> None:
    kube.apply(guest(quota={"gpus": [{"name": "h200", "nominal": 2, "borrowingLimit": 1}]}))

    hard = eventually(
        lambda: (kube.get("v1", "ResourceQuota", "windlass-quota", GUESTS_TEAM) or {})["spec"]["hard"],
        lambda found: found["requests.nvidia.com/gpu"] == "3",
    )

    assert hard["requests.nvidia.com/mig-1g.10gb"] == "0"


def test_a_quota_that_keeps_pods_from_existing_is_told_on_the_service(kube: KubeClient) -> None:
    squatter = {
        "apiVersion": APPS,
        "kind": "Deployment",
        "metadata": {"name": "squatter", "namespace": GUESTS_TEAM},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "squatter"}},
            "template": {
                "metadata": {"labels": {"app": "squatter"}},
                "spec": {
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 1000,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "c",
                            "image": "none",
                            "resources": {"limits": {"nvidia.com/gpu": "5"}},
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                            },
                        }
                    ],
                },
            },
        },
    }
    kube.create(squatter)
    try:
        eventually(lambda: len(kube.list("v1", "Pod", GUESTS_TEAM, "app=squatter")), lambda count: count == 1)

        kube.apply(gpu_service("chat", GUESTS_TEAM, 2))

        told = eventually(
            lambda: condition(kube, "chat", "Ready", GUESTS_TEAM),
            lambda found: "exceeded quota" in found.get("message", ""),
        )
        assert told["reason"] == "PodsPending"
    finally:
        kube.delete(APPS, "Deployment", "squatter", GUESTS_TEAM)


def test_books_settle_and_then_nothing_is_written(kube: KubeClient) -> None:
    kube.apply(gpu_service("night", GUESTS_TEAM, 4))
    kube.apply(gpu_service("day", OWNERS_TEAM, 2))
    wait_ready(kube, "night", GUESTS_TEAM)
    wait_ready(kube, "day", OWNERS_TEAM)
    eventually(lambda: use(kube, OWNER), lambda books: books == {"nominal": 4, "used": 2, "borrowed": 0, "lent": 2})
    time.sleep(2)

    def versions() -> dict[str, str]:
        found = [
            *kube.list(API, "InferenceService", OWNERS_TEAM),
            *kube.list(API, "InferenceService", GUESTS_TEAM),
            *(kube.get(API, "Tenant", name) or {} for name in (OWNER, GUEST)),
        ]
        return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in found}

    before = versions()
    time.sleep(3)

    assert versions() == before
