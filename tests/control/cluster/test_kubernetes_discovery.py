"""What discovery makes of the answers of an API server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from windlass_operator.cluster.kubernetes_client import KubernetesClient, NotFound
from windlass_operator.cluster.kubernetes_discovery import Discovery
from windlass_operator.domain.capabilities import ApiOwner, Capabilities
from windlass_operator.errors import ApplyRejected, ClusterUnavailable

OURS = {"app.kubernetes.io/part-of": "windlass", "app.kubernetes.io/component": "metrics-adapter"}


class Server(KubernetesClient):
    """Answers by path; an autoscaler of a dry run as an API server of some age would."""

    def __init__(self, *, zero: bool = False, tolerance: bool = False, images: str = "keeps") -> None:
        self.git_version = "v1.37.0"
        self.answers: dict[str, Any] = {}
        self.forbidden = False
        self.trials: list[Mapping[str, Any]] = []
        self._zero, self._tolerance, self._images = zero, tolerance, images

    async def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        if path == "/version":
            return {"gitVersion": self.git_version}
        if method == "POST" and body is not None:
            return self._judge(body, more["params"])
        if self.forbidden:
            raise ClusterUnavailable("403")
        if path not in self.answers:
            raise NotFound(path)
        found: dict[str, Any] = self.answers[path]
        return found

    def _judge(self, body: Mapping[str, Any], params: Mapping[str, str]) -> dict[str, Any]:
        assert params["dryRun"] == "All", "a trial must write nothing"
        self.trials.append(body)
        if body["kind"] == "Deployment":
            return self._judge_volumes(body)
        spec = dict(body["spec"])
        if spec["minReplicas"] == 0 and not self._zero:
            raise ApplyRejected("minReplicas: must be greater than or equal to 1", reason="Invalid")
        if not self._tolerance:
            spec.pop("behavior", None)
        return {**body, "spec": spec}

    def _judge_volumes(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._images == "refuses":
            raise ApplyRejected("spec.volumes[0]: Required value: must specify a volume type", reason="Invalid")
        volumes = body["spec"]["template"]["spec"]["volumes"]
        if self._images == "drops":
            volumes = [{"name": volume["name"]} for volume in volumes]
        return {**body, "spec": {"template": {"spec": {"volumes": volumes}}}}

    def register(self, name: str, service: str, labels: Mapping[str, str] | None = None) -> None:
        namespace, _, found = service.partition("/")
        spec = {"service": {"namespace": namespace, "name": found}} if service else {}
        metadata = {"name": name, "labels": dict(labels or {})}
        self.answers[f"/apis/apiregistration.k8s.io/v1/apiservices/{name}"] = {"metadata": metadata, "spec": spec}


async def test_a_cluster_with_nothing_offers_nothing() -> None:
    assert await Discovery(Server()).look() == Capabilities(known=True)


@pytest.mark.parametrize(("zero", "tolerance"), [(True, False), (False, True), (True, True)])
async def test_what_the_autoscaler_takes_is_tried(zero: bool, tolerance: bool) -> None:
    found = await Discovery(Server(zero=zero, tolerance=tolerance)).look()

    assert (found.scales_to_zero, found.knows_tolerance) == (zero, tolerance)


async def test_it_is_tried_again_only_when_the_server_is_another_one() -> None:
    server = Server(zero=True)
    discovery = Discovery(server)
    await discovery.look()
    await discovery.look()
    assert len(server.trials) == 3

    server.git_version, server._zero = "v1.34.0", False

    assert (await discovery.look()).scales_to_zero is False
    assert len(server.trials) == 6


@pytest.mark.parametrize(
    ("images", "told"),
    [
        pytest.param("keeps", "", id="gate on"),
        pytest.param("drops", "v1.37.0", id="gate off: the volume is gone from the answer"),
        pytest.param("refuses", "v1.37.0", id="gate off: a volume of no kind is refused"),
    ],
)
async def test_a_server_that_drops_image_volumes_is_told_by_its_version(images: str, told: str) -> None:
    assert (await Discovery(Server(images=images)).look()).drops_image_volumes == told


@pytest.mark.parametrize(
    ("labels", "ours"), [(OURS, True), ({}, False), ({"app.kubernetes.io/component": "metrics-adapter"}, False)]
)
async def test_the_owner_of_an_api_is_named_and_known_by_its_labels(labels: dict[str, str], ours: bool) -> None:
    server = Server()
    server.register("v1beta2.custom.metrics.k8s.io", "monitoring/adapter", labels)
    server.register("v1beta1.external.metrics.k8s.io", "keda/keda-operator-metrics-apiserver")

    found = await Discovery(server).look()

    assert found.custom_metrics == ApiOwner("monitoring/adapter", ours)
    assert found.external_metrics == ApiOwner("keda/keda-operator-metrics-apiserver")


async def test_an_older_version_of_the_api_counts_too() -> None:
    server = Server()
    server.register("v1beta1.custom.metrics.k8s.io", "monitoring/prometheus-adapter")

    assert (await Discovery(server).look()).custom_metrics.service == "monitoring/prometheus-adapter"


async def test_keda_is_there_when_it_serves_scaled_objects() -> None:
    server = Server()
    server.answers["/apis/keda.sh/v1alpha1"] = {"resources": [{"name": "scaledjobs"}]}
    assert (await Discovery(server).look()).has_keda is False

    server.answers["/apis/keda.sh/v1alpha1"] = {"resources": [{"name": "scaledobjects"}]}
    assert (await Discovery(server).look()).has_keda is True


async def test_what_may_not_be_read_counts_as_absent() -> None:
    server = Server()
    server.forbidden = True

    assert await Discovery(server).look() == Capabilities(known=True)


@pytest.mark.parametrize(
    ("served", "found"),
    [
        pytest.param(["v1beta1", "v1beta2"], "kueue.x-k8s.io/v1beta2", id="the newest it serves"),
        pytest.param(["v1beta1"], "kueue.x-k8s.io/v1beta1", id="an older one"),
        pytest.param([], "", id="none"),
    ],
)
async def test_kueue_is_known_by_the_version_of_its_workloads(served: list[str], found: str) -> None:
    server = Server()
    for version in served:
        server.answers[f"/apis/kueue.x-k8s.io/{version}"] = {"resources": [{"name": "workloads"}]}

    assert (await Discovery(server).look()).kueue == found
