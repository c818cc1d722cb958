"""How many replicas, and who owns the number."""

from __future__ import annotations

import pytest

from support.builders import build_service
from windlass_operator.domain.fleet import Platform
from windlass_operator.domain.scaling import (
    ReplicaRange,
    check_scaling,
    explain_replicas,
    plan_scaling,
    replica_range,
)

SCALED = {"minReplicas": 2, "maxReplicas": 8}


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
        pytest.param({"replicas": 3}, 3, Platform.KUBERNETES, None, id="a fixed number"),
    ],
)
def test_an_autoscaler_gets_what_the_quota_grants(fields, granted, platform, expected):
    plan = plan_scaling(build_service(**fields).spec, granted, platform)

    assert (None if plan is None else (plan.min_replicas, plan.max_replicas)) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"replicas": 1, "scaling": SCALED}, "ConflictingReplicas", id="two owners of one number"),
        pytest.param({"scaling": {"minReplicas": 9, "maxReplicas": 8}}, "InvalidScaling", id="minimum above maximum"),
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

    decision = explain_replicas(spec, plan_scaling(spec, wanted.most, platform), wanted.least, platform)

    assert decision.choice == choice
    assert words in decision.reason
