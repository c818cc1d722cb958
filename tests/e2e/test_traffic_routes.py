"""Weights of canaries for other routers: real definitions of the Gateway API, its pools and Istio judge our objects.

No such router runs here; what matters is that the objects are there, valid, and follow the canaries.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess, running_operator
from support.services import API, condition, find, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

ROOT = Path(__file__).parents[2]
GATEWAY_API = "gateway.networking.k8s.io/v1"
INFERENCE_API = "inference.networking.k8s.io/v1"
ISTIO_API = "networking.istio.io/v1"
DEFINITIONS = {
    "sigs.k8s.io/gateway-api@v1.4.0": "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    "sigs.k8s.io/gateway-api-inference-extension@v1.3.0": (
        "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml"
    ),
    "istio.io/api@v1.27.3": "kubernetes/customresourcedefinitions.gen.yaml",
}
WANTED = (
    "httproutes.gateway.networking.k8s.io",
    "inferencepools.inference.networking.k8s.io",
    "virtualservices.networking.istio.io",
)
SETTINGS = {"WINDLASS_FLEET_HTTP_ROUTE_GATEWAY": "gateways/public", "WINDLASS_FLEET_MESH_ROUTES": "Istio"}


def read_definitions() -> list[Manifest]:
    """The three definitions, from Go modules; skips where they cannot be had."""
    if shutil.which("go") is None:
        pytest.skip("missing binary: go, which brings the definitions of other routers' kinds")
    found: list[Manifest] = []
    for module, file in DEFINITIONS.items():
        loaded = subprocess.run(["go", "mod", "download", "-json", module], capture_output=True, text=True, check=False)
        if loaded.returncode:
            pytest.skip(f"{module} cannot be had: {loaded.stderr.strip()[-300:]}")
        text = (Path(json.loads(loaded.stdout)["Dir"]) / file).read_text()
        found += [item for item in yaml.safe_load_all(text) if item and item["metadata"]["name"] in WANTED]
    return found


@pytest.fixture(scope="module")
def definitions(kube: KubeClient) -> Iterator[None]:
    crds = read_definitions()
    for crd in crds:
        # The API server guards the group; released definitions carry this mark, those of a module may not.
        crd["metadata"].setdefault("annotations", {})["api-approved.kubernetes.io"] = "unapproved, for a test"
        kube.apply(crd)
        eventually(lambda name=crd["metadata"]["name"]: is_established(kube, name), bool)
    yield
    for crd in crds:
        kube.delete("apiextensions.k8s.io/v1", "CustomResourceDefinition", crd["metadata"]["name"])


def is_established(kube: KubeClient, name: str) -> bool:
    found = kube.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) or {}
    conditions = (found.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


@pytest.fixture(scope="module")
def rights(definitions: None, helm: Callable[..., str]) -> Iterator[None]:
    """The rights that the chart gives where it is asked for all of them."""
    chart = ("windlass", str(ROOT / "helm" / "windlass"), "--namespace", "windlass-system")
    asked = {"httpRouteGateway": "gateways/public", "meshRoutes": "Istio", "endpointPicker": "{name}-epp:9002"}
    helm("upgrade", *chart, "--reset-values", f"--set-json=fleet={json.dumps(asked)}")
    yield
    helm("upgrade", *chart, "--reset-values")


@pytest.fixture
def operator(
    rights: None, no_operator: OperatorProcess, operator_kubeconfig: Path, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """An operator that is asked for routes of the Gateway API and of Istio."""
    with running_operator(operator_kubeconfig, tmp_path / "operator.log", SETTINGS) as operator:
        eventually(operator.leads, bool, timeout_s=60)
        yield operator


@pytest.fixture
def picking_operator(
    rights: None, no_operator: OperatorProcess, operator_kubeconfig: Path, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """One that is told of endpoint pickers too."""
    settings = {**SETTINGS, "WINDLASS_FLEET_ENDPOINT_PICKER": "{name}-epp:9002"}
    with running_operator(operator_kubeconfig, tmp_path / "operator.log", settings) as operator:
        eventually(operator.leads, bool, timeout_s=60)
        yield operator


def canary(percent: int) -> Manifest:
    return {"name": "next", "trafficPercent": percent}


def weights(kube: KubeClient) -> list[tuple[str, int]]:
    """Backends of the last rule of the HTTPRoute."""
    route = kube.get(GATEWAY_API, "HTTPRoute", "chat", "team-a")
    refs = route["spec"]["rules"][-1]["backendRefs"] if route else []
    return [(ref["name"], ref["weight"]) for ref in refs]


def mesh_weights(kube: KubeClient) -> list[int]:
    found = kube.get(ISTIO_API, "VirtualService", "chat", "team-a")
    return [item["weight"] for item in found["spec"]["http"][-1]["route"]] if found else []


def decisions(kube: KubeClient) -> dict[str, str]:
    return {item["topic"]: item["choice"] for item in find(kube)["status"]["decisions"]}


def test_weights_follow_the_canary(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(service(canaries=[canary(30)]))
    wait_ready(kube)

    first = eventually(lambda: weights(kube), lambda found: found == [("chat", 70), ("chat-next", 30)])
    mesh = eventually(lambda: mesh_weights(kube), lambda found: found == [70, 30])
    kube.apply(service(canaries=[canary(60)]))

    assert first
    assert mesh
    eventually(lambda: weights(kube), lambda found: found == [("chat", 40), ("chat-next", 60)])
    eventually(lambda: mesh_weights(kube), lambda found: found == [40, 60])
    assert (decisions(kube)["http route"], decisions(kube)["mesh route"]) == ("HTTPRoute", "VirtualService")


def test_without_canaries_everything_goes_to_the_service(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(service(canaries=[canary(30)]))
    eventually(lambda: mesh_weights(kube), lambda found: found == [70, 30])

    kube.apply(service())

    eventually(lambda: weights(kube), lambda found: found == [("chat", 100)])
    eventually(lambda: mesh_weights(kube), lambda found: found == [])
    assert condition(kube)["status"] == "True"


def test_routes_go_with_their_service(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(service(canaries=[canary(30)]))
    eventually(lambda: weights(kube), bool)

    kube.delete(API, "InferenceService", "chat", "team-a")

    eventually(lambda: kube.get(GATEWAY_API, "HTTPRoute", "chat", "team-a"), lambda found: found is None, timeout_s=60)
    eventually(lambda: mesh_weights(kube), lambda found: found == [], timeout_s=60)


def test_a_route_that_somebody_edits_is_repaired(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(service())
    eventually(lambda: weights(kube), lambda found: found == [("chat", 100)])
    route: Any = kube.get(GATEWAY_API, "HTTPRoute", "chat", "team-a")

    kube.merge(route, {"spec": {"parentRefs": [{"name": "other", "namespace": "gateways"}]}})
    kube.apply(service(replicas=2))

    eventually(
        lambda: kube.get(GATEWAY_API, "HTTPRoute", "chat", "team-a"),
        lambda found: found is not None and found["spec"]["parentRefs"][0]["name"] == "public",
    )


def pools(kube: KubeClient) -> dict[str, str]:
    """Pools of the service, and the Service of the picker of each."""
    found = (kube.get(INFERENCE_API, "InferencePool", name, "team-a") for name in ("chat", "chat-next"))
    return {pool["metadata"]["name"]: pool["spec"]["endpointPickerRef"]["name"] for pool in found if pool}


def backends(kube: KubeClient) -> list[tuple[str, str]]:
    """Kind and name of what the last rule of the HTTPRoute sends to."""
    route = kube.get(GATEWAY_API, "HTTPRoute", "chat", "team-a")
    refs = route["spec"]["rules"][-1]["backendRefs"] if route else []
    return [(ref["kind"], ref["name"]) for ref in refs]


def test_every_revision_has_a_pool_where_a_picker_is_named(kube: KubeClient, picking_operator: OperatorProcess) -> None:
    kube.apply(service(canaries=[canary(30)]))
    wait_ready(kube, timeout_s=60)

    found = eventually(lambda: pools(kube), lambda found: len(found) == 2, timeout_s=60)
    sent = eventually(lambda: backends(kube), lambda found: len(found) == 2, timeout_s=60)

    assert found == {"chat": "chat-epp", "chat-next": "chat-next-epp"}
    assert sent == [("InferencePool", "chat"), ("InferencePool", "chat-next")]
    assert decisions(kube)["inference pool"] == "InferencePool"


def test_a_pool_goes_with_its_canary_also_after_a_restart(kube: KubeClient, picking_operator: OperatorProcess) -> None:
    kube.apply(service(canaries=[canary(30)]))
    eventually(lambda: pools(kube), lambda found: len(found) == 2, timeout_s=60)
    picking_operator.stop()
    kube.apply(service())

    picking_operator.start()

    eventually(lambda: pools(kube), lambda found: found == {"chat": "chat-epp"}, timeout_s=60)
    eventually(lambda: backends(kube), lambda found: found == [("InferencePool", "chat")], timeout_s=60)
