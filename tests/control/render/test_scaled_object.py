"""What KEDA is told: the same intent as the autoscaler's, as queries that are well formed."""

from __future__ import annotations

from dataclasses import replace

import promql_parser
import pytest

from support.builders import build_service, build_snapshot
from windlass_operator.api.v1alpha1.scaling import MetricType
from windlass_operator.domain.capabilities import ApiOwner, Capabilities
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.workload import render_service

SETTINGS = FleetSettings(prometheus_url="http://prometheus.monitoring:9090")
KEDA = Capabilities(known=True, has_keda=True)
ALL = [{"type": kind.value, "target": 50} for kind in MetricType]


def scaler_of(capabilities=KEDA, settings=SETTINGS, **scaling):
    """The object that drives the number of replicas."""
    service = build_service(scaling={"maxReplicas": 8, **scaling}, limits={"maxRunningRequests": 16})
    snapshot = replace(build_snapshot(service), capabilities=capabilities)
    children = render_service(plan_service(service, snapshot, settings), settings)
    (found,) = (item for item in children if item["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"))
    return found


def test_there_is_one_scaler_of_the_kind_that_was_chosen():
    assert scaler_of()["kind"] == "ScaledObject"
    assert scaler_of(Capabilities(known=True, custom_metrics=ApiOwner("a/b", ours=True)))["kind"] != "ScaledObject"


def test_bounds_and_behaviour_are_those_of_the_autoscaler():
    scaled = scaler_of(minReplicas=2, scaleDownDelaySeconds=120)["spec"]
    plain = scaler_of(Capabilities(), minReplicas=2, scaleDownDelaySeconds=120)["spec"]

    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (plain["minReplicas"], plain["maxReplicas"])
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == plain["behavior"]
    assert scaled["scaleTargetRef"] == plain["scaleTargetRef"]
    assert scaled["cooldownPeriod"] == 120


def test_every_metric_is_a_query_about_the_pods_of_the_service_only():
    triggers = scaler_of(metrics=ALL)["spec"]["triggers"]

    asked = [trigger["metadata"] for trigger in triggers if trigger["type"] == "prometheus"]
    assert len(triggers) == len(ALL)
    assert [trigger["metadata"] for trigger in triggers if trigger["type"] == "cpu"] == [{"value": "50"}]
    for metadata in asked:
        promql_parser.parse(metadata["query"])
        assert 'namespace="team-a"' in metadata["query"]
        assert 'pod=~"chat-[a-z0-9]+-[a-z0-9]{5}"' in metadata["query"]
        assert metadata["ignoreNullValues"] == "false", "an empty answer is no zero"


@pytest.mark.parametrize(
    ("metric", "target", "threshold"),
    [
        ("QueueDepth", 4, "4"),
        ("CacheUse", 80, "0.8"),
        ("GPUUtilization", 75, "0.75"),
        ("TimeToFirstToken", 1500, "1.5"),
        ("TokensPerSecond", 20_000, "20000"),
    ],
)
def test_targets_are_in_the_unit_of_the_query(metric, target, threshold):
    (trigger,) = scaler_of(metrics=[{"type": metric, "target": target}])["spec"]["triggers"]

    assert trigger["metadata"]["threshold"] == threshold


def test_a_sleeping_service_is_woken_by_what_gateways_are_asked_for():
    spec = scaler_of(minReplicas=0)["spec"]

    assert spec["minReplicaCount"] == 0
    demand = spec["triggers"][-1]["metadata"]
    promql_parser.parse(demand["query"])
    assert "windlass_gateway_demand_requests" in demand["query"]
    assert demand["threshold"] == "16"


def test_the_fallback_keeps_what_runs():
    spec = scaler_of(fallback={"replicas": 3, "afterSeconds": 100})["spec"]

    assert spec["fallback"] == {"failureThreshold": 7, "replicas": 3, "behavior": "currentReplicasIfHigher"}


def test_metrics_of_the_processor_alone_have_no_fallback():
    """KEDA knows none for them, and refuses the object."""
    metrics = [{"type": "CPUUtilization", "target": 70}]

    assert "fallback" not in scaler_of(metrics=metrics, fallback={"replicas": 3})["spec"]
