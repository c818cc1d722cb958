"""How canaries stand, for Prometheus."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry

from support.builders import build_service, build_snapshot
from windlass_operator.api.v1alpha1.canary import CanaryPhase, CanaryStatus
from windlass_operator.reconcile.canary_metrics import CanaryMetrics


def test_each_canary_has_a_share_and_says_whether_it_was_aborted() -> None:
    service = build_service()
    states = [
        CanaryStatus(name="next", phase=CanaryPhase.ANALYSING, traffic_percent=20),
        CanaryStatus(name="late", phase=CanaryPhase.ABORTED),
    ]
    service = service.model_copy(update={"status": service.status.model_copy(update={"canaries": states})})
    registry = CollectorRegistry()
    registry.register(CanaryMetrics(lambda: build_snapshot(service)))

    text = prometheus_client.generate_latest(registry).decode()

    place = 'canary="%s",namespace="team-a",service="chat"'
    assert "windlass_canary_traffic_percent{" + place % "next" + "} 20.0" in text
    assert "windlass_canary_aborted{" + place % "next" + "} 0.0" in text
    assert "windlass_canary_aborted{" + place % "late" + "} 1.0" in text
