"""How many replicas, and who owns the number."""

from __future__ import annotations

import datetime

import pytest

from support.builders import build_service
from windlass_operator.api.v1alpha1.inference_service import InferenceServiceStatus
from windlass_operator.domain.capabilities import ApiOwner, Capabilities
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.scaling import (
    ReplicaRange,
    Scaler,
    Sleep,
    check_scaling,
    choose_scale_up_period,
    choose_scaler,
    explain_replicas,
    fallback_due_at,
    metrics_lost_since,
    plan_scaling,
    replica_range,
)

SCALED = {"minReplicas": 2, "maxReplicas": 8}
ASLEEP = {"minReplicas": 0, "maxReplicas": 8}
OURS = ApiOwner("windlass-system/windlass-metrics-adapter", ours=True)
THEIRS = ApiOwner("monitoring/prometheus-adapter")
PROMETHEUS = "http://prometheus.monitoring:9090"


def plan_of(granted=8, capabilities=None, platform=Platform.KUBERNETES, **more):
    scaling = more.pop("scaling", SCALED)
    fields = {key: more.pop(key) for key in ("suspend", "replicas", "limits") if key in more}
    spec = build_service(**({"scaling": scaling} if scaling else {}), **fields).spec
    settings = FleetSettings(platform=platform, prometheus_url=more.pop("prometheus_url", ""))
    return plan_scaling(spec, granted, settings, capabilities or Capabilities(), **more)


@pytest.mark.parametrize(
    ("fields", "platform", "expected"),
    [
        pytest.param({}, Platform.KUBERNETES, (1, 1), id="one unless told otherwise"),
        pytest.param({"replicas": 3}, Platform.KUBERNETES, (3, 3), id="a fixed number"),
        pytest.param({"replicas": 0}, Platform.KUBERNETES, (0, 0), id="none"),
        pytest.param({"scaling": SCALED}, Platform.KUBERNETES, (2, 8), id="an autoscaler's range"),
        pytest.param({"scaling": SCALED}, Platform.LOCAL, (2, 2), id="one machine has no autoscaler"),
        pytest.param({"replicas": 3, "suspend": True}, Platform.KUBERNETES, (0, 0), id="suspended"),
    ],
)
def test_a_spec_asks_for_a_range_of_replicas(fields, platform, expected):
    assert replica_range(build_service(**fields).spec, platform) == ReplicaRange(*expected)


@pytest.mark.parametrize(
    ("fields", "granted", "platform", "expected"),
    [
        pytest.param({"scaling": SCALED}, 8, Platform.KUBERNETES, (2, 8), id="as asked"),
        pytest.param({"scaling": SCALED}, 5, Platform.KUBERNETES, (2, 5), id="the quota ends earlier"),
        pytest.param({"scaling": SCALED}, 1, Platform.KUBERNETES, (1, 1), id="even below the minimum"),
        pytest.param({"scaling": SCALED}, 8, Platform.LOCAL, None, id="one machine has no autoscaler"),
        pytest.param({"scaling": SCALED, "suspend": True}, 0, Platform.KUBERNETES, None, id="suspended"),
        pytest.param({"scaling": None, "replicas": 3}, 3, Platform.KUBERNETES, None, id="a fixed number"),
    ],
)
def test_an_autoscaler_gets_what_the_quota_grants(fields, granted, platform, expected):
    plan = plan_of(granted, platform=platform, **fields)

    assert (None if plan is None else (plan.min_replicas, plan.max_replicas)) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"replicas": 1, "scaling": SCALED}, "ConflictingReplicas", id="two owners of one number"),
        pytest.param({"scaling": {"minReplicas": 9, "maxReplicas": 8}}, "InvalidScaling", id="minimum above maximum"),
        pytest.param(
            {
                "scaling": {
                    **SCALED,
                    "schedules": [{"name": "a", "timeZone": "Mars/Base", "start": "08:00", "end": "09:00"}],
                }
            },
            "UnknownTimeZone",
            id="a zone nobody knows",
        ),
        pytest.param({"scaling": SCALED}, None, id="in order"),
    ],
)
def test_contradictions_are_refused_though_the_schema_forbids_them_too(fields, reason):
    refusal = check_scaling(build_service(**fields).spec)

    assert (refusal.reason if refusal else None) == reason


@pytest.mark.parametrize(
    ("fields", "platform", "choice", "words"),
    [
        pytest.param({"scaling": SCALED}, Platform.KUBERNETES, "2 to 8", "QueueDepth 4 per replica", id="autoscaled"),
        pytest.param({"scaling": SCALED}, Platform.LOCAL, "2", "needs a cluster's autoscaler", id="one machine"),
        pytest.param({"suspend": True}, Platform.KUBERNETES, "0", "spec.suspend", id="suspended"),
        pytest.param({"replicas": 3}, Platform.KUBERNETES, "3", "spec.replicas", id="fixed"),
        pytest.param({}, Platform.KUBERNETES, "1", "default", id="default"),
    ],
)
def test_the_number_is_explained(fields, platform, choice, words):
    spec = build_service(**fields).spec
    wanted = replica_range(spec, platform)

    plan = plan_scaling(spec, wanted.most, FleetSettings(platform=platform), Capabilities())
    decision = explain_replicas(spec, plan, wanted.least, platform)

    assert decision.choice == choice
    assert words in decision.reason


@pytest.mark.parametrize(
    ("capabilities", "prometheus_url", "scaler", "words"),
    [
        pytest.param({"custom_metrics": OURS}, "", Scaler.AUTOSCALER, "our metrics adapter", id="our adapter"),
        pytest.param(
            {"custom_metrics": OURS, "has_keda": True}, PROMETHEUS, Scaler.AUTOSCALER, OURS.service, id="first"
        ),
        pytest.param({"custom_metrics": THEIRS}, "", Scaler.AUTOSCALER, "metrics-adapter rules", id="another adapter"),
        pytest.param({"has_keda": True}, PROMETHEUS, Scaler.SCALED_OBJECT, PROMETHEUS, id="KEDA"),
        pytest.param({"has_keda": True}, "", Scaler.AUTOSCALER, "not KEDA: the operator's setting", id="blind KEDA"),
        pytest.param({}, "", Scaler.AUTOSCALER, "nobody serves custom.metrics.k8s.io", id="nobody"),
    ],
)
def test_the_scaler_is_chosen_by_what_the_cluster_has(capabilities, prometheus_url, scaler, words):
    choice = choose_scaler(FleetSettings(prometheus_url=prometheus_url), Capabilities(known=True, **capabilities))

    assert choice.scaler is scaler
    assert words in choice.reason


@pytest.mark.parametrize(
    ("named", "capabilities", "scaler"),
    [
        pytest.param("ScaledObject", {"custom_metrics": OURS, "has_keda": True}, Scaler.SCALED_OBJECT, id="KEDA"),
        pytest.param("ScaledObject", {"custom_metrics": OURS}, Scaler.AUTOSCALER, id="KEDA where there is none"),
        pytest.param("HorizontalPodAutoscaler", {"has_keda": True}, Scaler.AUTOSCALER, id="the autoscaler"),
    ],
)
def test_a_person_may_name_the_scaler_where_it_works(named, capabilities, scaler):
    settings = FleetSettings(autoscaler=named, prometheus_url=PROMETHEUS)

    assert choose_scaler(settings, Capabilities(known=True, **capabilities)).scaler is scaler


@pytest.mark.parametrize(
    ("scaling", "capabilities", "sleep"),
    [
        pytest.param(SCALED, {"custom_metrics": OURS, "scales_to_zero": True}, Sleep.NEVER, id="a minimum"),
        pytest.param(ASLEEP, {"custom_metrics": OURS, "scales_to_zero": True}, Sleep.AUTOSCALER, id="native"),
        pytest.param(ASLEEP, {"custom_metrics": OURS}, Sleep.OPERATOR, id="an older cluster"),
        pytest.param(
            ASLEEP, {"custom_metrics": THEIRS, "scales_to_zero": True}, Sleep.OPERATOR, id="blind to the gateway"
        ),
        pytest.param(ASLEEP, {"has_keda": True}, Sleep.KEDA, id="KEDA"),
    ],
)
def test_who_scales_to_zero_depends_on_who_can(scaling, capabilities, sleep):
    plan = plan_of(scaling=scaling, capabilities=Capabilities(known=True, **capabilities), prometheus_url=PROMETHEUS)

    assert plan.sleep is sleep


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        pytest.param([{"type": "QueueDepth", "target": 4}], 16, id="what a replica computes at once"),
        pytest.param([{"type": "RunningRequests", "target": 6}], 6, id="what it should compute at once"),
        pytest.param([{"type": "RunningRequests", "target": 99}], 16, id="but not more than it can"),
    ],
)
def test_held_requests_start_as_many_replicas_as_they_fill(metrics, expected):
    plan = plan_of(scaling={**ASLEEP, "metrics": metrics}, limits={"maxRunningRequests": 16})

    assert plan.requests_per_replica == expected


@pytest.mark.parametrize(
    ("startup_s", "period_s"), [(0, 60), (59, 60), (61, 120), (200, 300), (301, 600), (1300, 1800), (9000, 1800)]
)
def test_growth_is_bounded_over_the_time_a_replica_takes_to_start(startup_s, period_s):
    assert choose_scale_up_period(startup_s) == period_s


@pytest.mark.parametrize(
    ("lost_s", "replicas", "expected"),
    [
        pytest.param(None, 5, (2, 8, False), id="metrics are there"),
        pytest.param(179, 5, (2, 8, False), id="held at first"),
        pytest.param(180, 5, (5, 8, True), id="then the fallback"),
        pytest.param(180, 8, (8, 8, True), id="up to the maximum"),
        pytest.param(999, 1, (2, 8, True), id="which never lowers the minimum"),
    ],
)
def test_missing_metrics_raise_the_minimum_after_a_while_and_never_lower_it(lost_s, replicas, expected):
    plan = plan_of(scaling={**SCALED, "fallback": {"replicas": replicas}}, metrics_lost_s=lost_s)

    assert (plan.min_replicas, plan.max_replicas, plan.falls_back) == expected


def status_of(reason, status="False"):
    condition = {
        "type": "ScalingActive",
        "status": status,
        "reason": reason,
        "lastTransitionTime": "2026-01-15T10:00:00Z",
    }
    return InferenceServiceStatus.model_validate({"conditions": [condition]})


def test_the_time_of_the_loss_is_read_from_the_status():
    at = datetime.datetime(2026, 1, 15, 10, tzinfo=datetime.UTC)
    scaling = build_service(scaling={**SCALED, "fallback": {"replicas": 3, "afterSeconds": 60}}).spec.scaling

    assert metrics_lost_since(status_of("AutoscalerProblem")) == at
    assert metrics_lost_since(status_of("ForeignScaler")) is None
    assert metrics_lost_since(status_of("AutoscalerActive", "True")) is None
    due = at + datetime.timedelta(seconds=60)
    assert fallback_due_at(scaling, status_of("AutoscalerProblem"), at) == due
    assert fallback_due_at(scaling, status_of("AutoscalerProblem"), due) is None
    assert fallback_due_at(scaling, status_of("AutoscalerActive", "True"), at) is None


def test_tolerance_reaches_only_servers_that_know_it():
    scaling = {**SCALED, "tolerancePercent": 20}

    assert plan_of(scaling=scaling).tolerance_percent is None
    assert plan_of(scaling=scaling, capabilities=Capabilities(knows_tolerance=True)).tolerance_percent == 20
