"""A GitOps engine that applies the samples finds nothing to correct, whatever autoscalers and label writers do.

The engines are imitated by what they send: server-side apply as their field manager, with their tracking marks, and the
comparisons that tell them of drift. tests/e2e/test_argocd.py does it with Argo CD itself.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.audit_log import AuditLog
from support.fake_fleet import CLASSES, H200, FakeNode, add_node
from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess
from support.services import API, OWNED, deployment, pods, remove_services, wait_ready

pytestmark = [pytest.mark.cluster]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAMPLES = ("fleet/gpu-classes.yaml", "fleet/tenants.yaml", "fleet/services.yaml")
QUICKSTART = ("quickstart/tenant.yaml", "quickstart/storyteller.yaml")
NODES = (
    FakeNode("gitops-mig", "zone-a", H200 | {"nvidia.com/mig.strategy": "mixed"}, {"nvidia.com/mig-1g.18gb": 7}),
    FakeNode("gitops-cpu", "zone-b", {"node.kubernetes.io/instance-type": "c7i.4xlarge"}),
)
NOISE_S = 10.0
"""How long each kind of noise lasts."""
QUIET_S = 5.0
"""Longer than two rounds of the HPA controller here, whose conditions the operator mirrors."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What a GitOps engine adds to an object, and as whom it applies it."""

    name: str
    manager: str
    labels: tuple[tuple[str, str], ...] = ()
    annotations: Callable[[Manifest], dict[str, str]] = lambda manifest: {}

    def mark(self, manifest: Manifest) -> Manifest:
        """The object as the engine sends it."""
        marked = copy.deepcopy(manifest)
        metadata = marked["metadata"]
        if self.labels:
            metadata["labels"] = {**metadata.get("labels", {}), **dict(self.labels)}
        if annotations := self.annotations(manifest):
            metadata["annotations"] = {**metadata.get("annotations", {}), **annotations}
        return marked

    def sync(self, kube: KubeClient, manifest: Manifest) -> None:
        """Apply one object, as a sync does."""
        kube.apply(self.mark(manifest), manager=self.manager)


def tracking_id(manifest: Manifest) -> dict[str, str]:
    """Argo CD's mark of an object that belongs to an Application."""
    group = manifest["apiVersion"].rpartition("/")[0]
    metadata = manifest["metadata"]
    place = f"{metadata.get('namespace', '')}/{metadata['name']}"
    return {"argocd.argoproj.io/tracking-id": f"windlass:{group}/{manifest['kind']}:{place}"}


ARGOCD = Engine("argocd", "argocd-controller", annotations=tracking_id)
FLUX = Engine(
    "flux",
    "kustomize-controller",
    labels=(
        ("kustomize.toolkit.fluxcd.io/name", "windlass"),
        ("kustomize.toolkit.fluxcd.io/namespace", "flux-system"),
    ),
)
MARKS = ("argocd.argoproj.io/", "kustomize.toolkit.fluxcd.io/", "kubectl.kubernetes.io/last-applied")


def read_samples() -> list[Manifest]:
    """Everything in examples/ that is ours, as a Git repository would hold it."""
    texts = [(EXAMPLES / path).read_text() for path in (*SAMPLES, *QUICKSTART)]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module", params=[ARGOCD, FLUX], ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    """One after the other, each on objects of its own."""
    found: Engine = request.param
    return found


@pytest.fixture(scope="module")
def samples(kube: KubeClient, shared_operator: OperatorProcess, engine: Engine) -> Iterator[list[Manifest]]:
    """The samples, synced by the engine in the order of docs/howto/argocd.md, and settled."""
    if not shared_operator.running:
        shared_operator.start()
    for node in NODES:
        add_node(kube, node)
    manifests = read_samples()
    with removed_afterwards(kube, manifests):
        for kind in ("GPUClass", "Tenant", "InferenceService"):
            wave = [manifest for manifest in manifests if manifest["kind"] == kind]
            for manifest in wave:
                engine.sync(kube, manifest)
            for manifest in wave:
                eventually(lambda manifest=manifest: read(kube, manifest), is_settled, timeout_s=60)
        yield manifests


@contextlib.contextmanager
def removed_afterwards(kube: KubeClient, manifests: list[Manifest]) -> Iterator[None]:
    """Leave the shared control plane as it was; one sample bears the name of a class of the shared fleet."""
    try:
        yield
    finally:
        remove_services(kube)
        for manifest in manifests:
            kube.delete(manifest["apiVersion"], manifest["kind"], name_of(manifest), namespace_of(manifest))
        for node in NODES:
            kube.delete("v1", "Node", node.name)
        for name, spec in CLASSES.items():
            kube.apply({"apiVersion": API, "kind": "GPUClass", "metadata": {"name": name}, "spec": spec})


def name_of(manifest: Manifest) -> str:
    name: str = manifest["metadata"]["name"]
    return name


def namespace_of(manifest: Manifest) -> str:
    namespace: str = manifest["metadata"].get("namespace", "")
    return namespace


def is_settled(manifest: Manifest) -> bool:
    """Seen, and nothing under way. The quickstart is Stalled here: only `windlass up` opens relative paths."""
    status = manifest.get("status", {})
    kinds = {condition["type"] for condition in status.get("conditions", ())}
    seen = status.get("observedGeneration") == manifest["metadata"]["generation"]
    return seen and "Ready" in kinds and "Reconciling" not in kinds


def read(kube: KubeClient, manifest: Manifest) -> Manifest:
    found = kube.get(manifest["apiVersion"], manifest["kind"], name_of(manifest), namespace_of(manifest))
    assert found is not None, f"{manifest['kind']} {name_of(manifest)} is gone"
    return found


def drift(kube: KubeClient, engine: Engine, manifest: Manifest) -> dict[str, Any]:
    """What a sync would change now: the server's answer to a dry run beside what it stores.

    Flux decides this way, and Argo CD does with ServerSideDiff=true.
    """
    before = intent(read(kube, manifest))
    predicted = intent(kube.apply(engine.mark(manifest), manager=engine.manager, dry_run=True))
    after = intent(read(kube, manifest))
    if predicted in (before, after):  # somebody else may have written in between
        return {}
    return {"kind": manifest["kind"], "name": name_of(manifest), "predicted": predicted, "live": after}


def intent(manifest: Manifest) -> Manifest:
    """An object without what the server counts and without its status."""
    metadata = {key: manifest["metadata"].get(key) for key in ("name", "namespace", "labels", "annotations")}
    return {"metadata": metadata, "spec": manifest["spec"], "owners": manifest["metadata"].get("ownerReferences")}


def all_drift(kube: KubeClient, engine: Engine, manifests: list[Manifest]) -> list[dict[str, Any]]:
    return [found for manifest in manifests if (found := drift(kube, engine, manifest))]


def write_as(kube: KubeClient, manager: str, manifest: Manifest, change: Manifest, subresource: str = "") -> None:
    """A merge patch by another field manager."""
    path = kube.path_of(manifest) + (f"/{subresource}" if subresource else "")
    kube.request("PATCH", f"{path}?fieldManager={manager}", change, "application/merge-patch+json")


@pytest.mark.own_plane
@pytest.mark.usefixtures("operator")
def test_noise_around_the_samples_is_no_drift_and_no_reason_to_write(
    kube: KubeClient, audit: AuditLog, engine: Engine, samples: list[Manifest], operator_user: str
) -> None:
    services = [manifest for manifest in samples if manifest["kind"] == "InferenceService"]
    generations = {name_of(manifest): read(kube, manifest)["metadata"]["generation"] for manifest in services}
    audit.wait_until_quiet(operator_user)
    mark = audit.mark()

    deadline = time.monotonic() + NOISE_S
    for count in itertools.count():
        for manifest in services:
            write_as(kube, "cost-labeller", manifest, {"metadata": {"labels": {"example.com/cost": f"{count}"}}})
        labelled = deployment(kube, "chat", "search-prod")
        write_as(kube, "cost-labeller", labelled, {"metadata": {"labels": {"example.com/cost": f"{count}"}}})
        assert all_drift(kube, engine, samples) == []
        if time.monotonic() > deadline:
            break

    assert count > 3, "the noise was too slow to prove anything"
    assert audit.writes(mark, operator_user) == []
    for manifest in services:
        assert read(kube, manifest)["metadata"]["generation"] == generations[name_of(manifest)]


@pytest.mark.own_plane
@pytest.mark.usefixtures("operator")
def test_an_autoscaler_moves_replicas_without_drift_and_the_operator_only_reports(
    kube: KubeClient, audit: AuditLog, engine: Engine, samples: list[Manifest], operator_user: str
) -> None:
    chat = next(manifest for manifest in samples if name_of(manifest) == "chat")
    audit.wait_until_quiet(operator_user)
    mark = audit.mark()
    asked: list[int] = []

    deadline = time.monotonic() + NOISE_S
    for replicas in itertools.cycle((3, 4, 2, 5, 3)):
        child = deployment(kube, "chat", "search-prod")
        write_as(kube, "kube-controller-manager", child, {"spec": {"replicas": replicas}}, "scale")
        asked.append(replicas)
        assert all_drift(kube, engine, samples) == []
        assert deployment(kube, "chat", "search-prod")["spec"]["replicas"] == replicas
        if time.monotonic() > deadline:
            break
    eventually(lambda: read(kube, chat)["status"]["readyReplicas"], lambda ready: ready == asked[-1])
    audit.wait_until_quiet(operator_user)
    written = {(write.verb, write.resource, write.name) for write in audit.writes(mark, operator_user)}
    settled = audit.mark()
    time.sleep(QUIET_S)

    assert len(asked) > 3, "the noise was too slow to prove anything"
    assert {resource for _, resource, _ in written} <= {
        "inferenceservices/status",
        "tenants/status",
        "gpuclasses/status",
        "events",
    }
    assert audit.writes(settled, operator_user) == []
    assert all_drift(kube, engine, samples) == []


def test_a_sync_in_the_middle_of_scaling_keeps_the_replicas(
    kube: KubeClient, engine: Engine, samples: list[Manifest]
) -> None:
    original = next(manifest for manifest in samples if name_of(manifest) == "chat")
    chat = copy.deepcopy(original)
    write_as(
        kube, "kube-controller-manager", deployment(kube, "chat", "search-prod"), {"spec": {"replicas": 5}}, "scale"
    )
    chat["spec"]["drain"]["timeoutSeconds"] = 90
    seen = set()

    def grace_period() -> int:
        spec = deployment(kube, "chat", "search-prod")["spec"]
        seen.add(spec["replicas"])
        seconds: int = spec["template"]["spec"]["terminationGracePeriodSeconds"]
        return seconds

    engine.sync(kube, chat)
    eventually(grace_period, lambda seconds: seconds == 105)
    wait_ready(kube, "chat", "search-prod", timeout_s=60)

    grace_period()
    assert seen == {5}
    assert drift(kube, engine, chat) == {}
    assert drift(kube, engine, original) != {}, "the comparison would not see an edit either"
    engine.sync(kube, original)
    wait_ready(kube, "chat", "search-prod", timeout_s=60)


def test_a_restart_of_the_deployment_is_not_taken_back(
    kube: KubeClient, engine: Engine, samples: list[Manifest]
) -> None:
    before = {pod["metadata"]["uid"] for pod in pods(kube, "classifier", "research")}
    note = {"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"}
    child = deployment(kube, "classifier", "research")

    write_as(kube, "argocd-server", child, {"spec": {"template": {"metadata": {"annotations": note}}}})

    def running() -> set[str]:
        return {pod["metadata"]["uid"] for pod in pods(kube, "classifier", "research")}

    eventually(running, lambda found: bool(found) and not found & before)
    wait_ready(kube, "classifier", "research", timeout_s=60)
    annotations = deployment(kube, "classifier", "research")["spec"]["template"]["metadata"]["annotations"]
    assert annotations.items() >= note.items()
    assert all_drift(kube, engine, samples) == []


def test_no_mark_of_the_engine_reaches_a_child(kube: KubeClient, engine: Engine, samples: list[Manifest]) -> None:
    kinds = (
        ("apps/v1", "Deployment"),
        ("apps/v1", "ReplicaSet"),
        ("v1", "Pod"),
        ("v1", "Service"),
        ("v1", "ConfigMap"),
        ("v1", "ServiceAccount"),
        ("v1", "Namespace"),
        ("v1", "ResourceQuota"),
        ("v1", "LimitRange"),
        ("policy/v1", "PodDisruptionBudget"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding"),
        ("scheduling.k8s.io/v1", "PriorityClass"),
    )
    for manifest in samples:
        note = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
        write_as(kube, "kubectl", manifest, {"metadata": {"annotations": note}})

    children = {kind: kube.list(api, kind, selector=OWNED) for api, kind in kinds}

    assert [kind for kind, found in children.items() if not found] == []
    for kind, found in children.items():
        for child in found:
            metadata = child["metadata"]
            keys = {*metadata.get("labels", {}), *metadata.get("annotations", {})}
            assert not [key for key in keys if key.startswith(MARKS)], f"{kind} {metadata['name']}"


def test_a_users_own_autoscaler_may_hold_the_replicas_that_git_leaves_out(
    kube: KubeClient, engine: Engine, samples: list[Manifest]
) -> None:
    metadata = {"name": "elastic", "namespace": "team-acme"}
    spec: Manifest = {"model": {"uri": "file:///models/windlass-tiny"}}
    elastic: Manifest = {"apiVersion": API, "kind": "InferenceService", "metadata": metadata, "spec": spec}
    target = {"apiVersion": API, "kind": "InferenceService", "name": "elastic"}
    metric = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
    }
    autoscaler: Manifest = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "own", "namespace": "team-acme"},
        "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4, "metrics": [metric]},
    }
    engine.sync(kube, elastic)
    wait_ready(kube, "elastic", "team-acme")
    write_as(kube, "kubectl", elastic, {"spec": {"replicas": 1}}, "scale")  # an unset number is no scale to start from

    for least in (2, 3):
        autoscaler["spec"]["minReplicas"] = least
        engine.sync(kube, autoscaler)
        eventually(lambda: read(kube, elastic)["spec"]["replicas"], lambda found, least=least: found == least)
        assert drift(kube, engine, elastic) == {}
    spec["drain"] = {"timeoutSeconds": 30}
    engine.sync(kube, elastic)
    wait_ready(kube, "elastic", "team-acme")
    ready = eventually(lambda: read(kube, elastic), lambda found: found["status"]["replicas"] == 3)
    kube.delete("autoscaling/v2", "HorizontalPodAutoscaler", "own", "team-acme")
    kube.delete(API, "InferenceService", "elastic", "team-acme")

    assert ready["spec"]["replicas"] == 3
    assert ready["status"]["readyReplicas"] == 3
