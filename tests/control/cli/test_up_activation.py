"""Waking and stopping on one machine, with the gateway's figures of the test and a virtual clock."""

from __future__ import annotations

import pathlib

import pytest

from support.builders import build_service
from windlass_operator.api.loaded import Loaded, Source, identity_of
from windlass_operator.cli.up_activation import LocalActivator, plan_sleepers
from windlass_operator.cluster.gateways import Demand
from windlass_operator.cluster.local import LocalCluster
from windlass_operator.cluster.local_replicas import LocalSettings
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.snapshot import Key, Node

KEY = Key("InferenceService", "team-a", "chat")
FLEET = FleetSettings(platform=Platform.LOCAL)
ASLEEP = {"minReplicas": 0, "maxReplicas": 3, "scaleDownDelaySeconds": 60}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def build_cluster(tmp_path: pathlib.Path, **scaling) -> LocalCluster:
    settings = LocalSettings(state_dir=tmp_path, command=(), env={})
    cluster = LocalCluster(settings, Node("here", {}, {}), lambda key: None)
    service = build_service(scaling={**ASLEEP, **scaling}, limits={"maxRunningRequests": 4})
    sources = {identity_of(service): Source(str(tmp_path / "service.yaml"), 1)}
    cluster.load(Loaded(services=(service,), sources=sources))
    return cluster


def replicas_of(cluster: LocalCluster) -> int:
    """What the planner wants now."""
    snapshot = cluster.snapshot()
    replicas = plan_service(snapshot.services[KEY], snapshot, FLEET).replicas
    assert replicas is not None
    return replicas


@pytest.mark.parametrize(("held", "replicas"), [(0, 0), (1, 1), (4, 1), (5, 2), (99, 3)])
def test_waiting_requests_wake_what_they_fill(tmp_path, held, replicas):
    cluster = build_cluster(tmp_path)
    activator = LocalActivator(cluster, lambda: "", Clock())

    activator.decide(plan_sleepers(cluster), Demand({("team-a", "chat"): float(held)}, asked=1))

    assert replicas_of(cluster) == replicas


def test_a_service_that_nobody_asks_for_is_stopped_after_its_delay(tmp_path):
    cluster, clock = build_cluster(tmp_path), Clock()
    activator = LocalActivator(cluster, lambda: "", clock)
    activator.decide(plan_sleepers(cluster), Demand({("team-a", "chat"): 9.0}, asked=1))
    assert replicas_of(cluster) == 3

    seen = []
    for _ in range(130):
        activator.decide(plan_sleepers(cluster), Demand(asked=1))
        seen.append(replicas_of(cluster))
        clock.now_s += 0.5

    assert seen[0] == 1
    assert seen[119] == 1
    assert seen[-1] == 0


def test_a_gateway_that_is_not_heard_stops_nothing(tmp_path):
    cluster, clock = build_cluster(tmp_path), Clock()
    activator = LocalActivator(cluster, lambda: "", clock)
    activator.decide(plan_sleepers(cluster), Demand({("team-a", "chat"): 1.0}, asked=1))

    for _ in range(200):
        activator.decide(plan_sleepers(cluster), Demand(missing=1, asked=1))
        clock.now_s += 1.0

    assert replicas_of(cluster) == 1


def test_services_with_a_minimum_are_left_alone(tmp_path):
    assert plan_sleepers(build_cluster(tmp_path, minReplicas=1)) == {}
