"""From the previous commit's artefacts to this one's and back, with services running: CRDs, chart and operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess
from support.releases import Release, current, previous_revision, unpack
from support.services import API, children, deployment, find, pods, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("clean")]

Run = Callable[..., str]
SERVICES: dict[str, Manifest] = {
    "on-cpu": service("on-cpu", replicas=2),
    "on-gpu": service("on-gpu", accelerator={"classes": ["h200"]}, cache={"memory": "8Gi"}),
    "scaled": service("scaled", scaling={"minReplicas": 1, "maxReplicas": 4}),
}


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """What the previous commit would have released."""
    revision = previous_revision()
    if revision is None:
        pytest.skip("no previous commit in this checkout; name one with WINDLASS_PREVIOUS_RELEASE")
    release = unpack(revision, tmp_path_factory.mktemp("previous"))
    if not release.chart.is_dir():
        pytest.skip(f"commit {revision[:12]} has no chart yet")
    return release


@pytest.fixture
def restored(kube: KubeClient, helm: Run, no_operator: OperatorProcess) -> Iterator[None]:
    """Whatever the test installed, the next one finds what is under test."""
    yield
    if no_operator.running:
        no_operator.stop()
    install(kube, helm, current())


def install(kube: KubeClient, helm: Run, release: Release) -> None:
    """CRDs first, then the chart, as docs/howto/upgrade.md says."""
    for path in release.crds:
        kube.apply(yaml.safe_load(path.read_text()), manager="e2e")
    helm("upgrade", "--install", "windlass", str(release.chart), "--namespace", "windlass-system")


def run(operator: OperatorProcess, release: Release) -> None:
    """Replace the running operator by a release's."""
    if operator.running:
        operator.stop()
    operator.start(environment=release.environment)
    eventually(operator.leads, bool, timeout_s=30)


def running_pods(kube: KubeClient) -> dict[str, str]:
    """uid -> template hash of every pod of the services."""
    return {
        pod["metadata"]["uid"]: pod["metadata"]["labels"]["pod-template-hash"]
        for name in SERVICES
        for pod in pods(kube, name)
    }


@pytest.mark.usefixtures("restored", "fleet")
@pytest.mark.parametrize("direction", ["upgrade", "rollback"])
def test_changing_the_release_restarts_no_pod_and_loses_no_object(
    kube: KubeClient, helm: Run, no_operator: OperatorProcess, previous: Release, direction: str
) -> None:
    first, second = (previous, current()) if direction == "upgrade" else (current(), previous)
    install(kube, helm, first)
    run(no_operator, first)
    for manifest in SERVICES.values():
        kube.apply(manifest)
    for name in SERVICES:
        wait_ready(kube, name, timeout_s=60)
    before = running_pods(kube)
    generations = {name: deployment(kube, name)["metadata"]["generation"] for name in SERVICES}
    kept = {item["metadata"]["uid"] for name in SERVICES for item in children(kube, name)}

    install(kube, helm, second)
    run(no_operator, second)
    eventually(lambda: no_operator.metric("windlass_reconcile_duration_seconds_count"), lambda count: count >= 3)

    for name in SERVICES:
        wait_ready(kube, name)
    assert running_pods(kube) == before
    assert {name: deployment(kube, name)["metadata"]["generation"] for name in SERVICES} == generations
    assert {item["metadata"]["uid"] for name in SERVICES for item in children(kube, name)} >= kept


@pytest.mark.usefixtures("restored", "fleet")
def test_new_crds_keep_every_stored_object_under_an_operator_that_is_older(
    kube: KubeClient, helm: Run, no_operator: OperatorProcess, previous: Release
) -> None:
    install(kube, helm, previous)
    run(no_operator, previous)
    kube.apply(SERVICES["on-cpu"])
    wait_ready(kube, "on-cpu")
    before = find(kube, "on-cpu")

    for path in current().crds:
        kube.apply(yaml.safe_load(path.read_text()))
    kube.apply(service("on-cpu", replicas=1))

    after = wait_ready(kube, "on-cpu")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert len(kube.list(API, "GPUClass")) >= 4


def test_every_stored_version_is_one_that_the_crds_still_serve(kube: KubeClient, fleet: None) -> None:
    for path in current().crds:
        name = yaml.safe_load(Path(path).read_text())["metadata"]["name"]
        crd = kube.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
        assert crd is not None
        served = {version["name"] for version in crd["spec"]["versions"] if version["served"]}
        assert set(crd["status"]["storedVersions"]) <= served
