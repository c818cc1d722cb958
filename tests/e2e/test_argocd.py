"""Argo CD's own controller brings examples/argocd into an empty cluster, keeps it in sync, and takes it away again.

The tests tell one story in order, on one control plane: install, edit, noise, refusal, own autoscaler, removal.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from support.argocd import CUSTOMIZATIONS, NAMESPACE, GitRepository, build_argocd, find_binaries, running_argocd
from support.audit_log import AuditLog
from support.control_plane import ControlPlane, running_control_plane
from support.fake_fleet import H200, NODES, FakeNode, add_node
from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess
from support.services import API, OWNED, deployment, find, is_ready, wait_ready
from support.tools import Toolset

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.timeout(900)]

ARGO_API = "argoproj.io/v1alpha1"
SYSTEM = "windlass-system"
ACCOUNT = "windlass-operator"
WAVES = ("windlass-crds", "windlass-platform", "windlass-operator", "windlass-fleet", "windlass-services")
"""Applications of the example in the order of their waves."""
MORE_NODES = (
    FakeNode("gitops-mig", "zone-a", H200 | {"nvidia.com/mig.strategy": "mixed"}, {"nvidia.com/mig-1g.18gb": 7}),
    FakeNode("gitops-cpu", "zone-b", {"node.kubernetes.io/instance-type": "c7i.4xlarge"}),
)
QUOTA_SYNC = ["--resource-quota-sync-period=5s"]
"""A quota that counts a kind newer than itself admits none of it until the next such round: five minutes by default."""
SYNC_TIMEOUT_S = 120.0
NOISE_S = 30.0
"""Six comparisons of every Application."""


@dataclass
class World:
    """One cluster, its Git repository, Argo CD at work between them, and an operator that may run or not."""

    plane: ControlPlane
    kube: KubeClient
    git: GitRepository
    folder: Path
    operator: OperatorProcess | None = None

    def start_operator(self) -> OperatorProcess:
        """Start it as the service account that Argo CD has brought."""
        path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{ACCOUNT}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = self.kube.request("POST", path, request)["status"]["token"]
        kubeconfig = self.plane.access(token).write_kubeconfig(self.folder / "operator.json")
        self.operator = OperatorProcess(kubeconfig, self.folder / "operator.log")
        self.operator.start()
        return self.operator

    def applications(self) -> dict[str, tuple[str, str]]:
        """Name -> what Argo CD says of it: sync and health."""
        found = self.kube.list(ARGO_API, "Application", NAMESPACE)
        return {application["metadata"]["name"]: verdict(application) for application in found}

    def application(self, name: str) -> Manifest:
        """One Application. Raises AssertionError when it is gone."""
        found = self.kube.get(ARGO_API, "Application", name, NAMESPACE)
        assert found is not None, f"Application {name} is gone"
        return found

    def wait_for(self, name: str, sync: str, health: str) -> Manifest:
        """Wait until Argo CD says so of the revision that Git has now."""

        def told() -> tuple[str, str, str]:
            application = self.kube.get(ARGO_API, "Application", name, NAMESPACE) or {}
            revision = application.get("status", {}).get("sync", {}).get("revision", "")
            return (*verdict(application), revision)

        wanted = (sync, health, self.git.revision)
        eventually(told, lambda found: found == wanted, timeout_s=SYNC_TIMEOUT_S)
        return self.application(name)

    def resources(self, name: str) -> dict[str, tuple[str, str]]:
        """What an Application manages: `Kind/name` -> its sync and health."""
        resources = self.application(name).get("status", {}).get("resources", [])
        return {
            f"{item['kind']}/{item['name']}": (item.get("status", ""), item.get("health", {}).get("status", ""))
            for item in resources
        }


def verdict(application: Manifest) -> tuple[str, str]:
    status = application.get("status", {})
    return status.get("sync", {}).get("status", ""), status.get("health", {}).get("status", "")


@pytest.fixture(scope="module")
def world(minor: str, tools: Toolset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An empty cluster with Argo CD, whose root Application has just been applied."""
    if os.environ.get("WINDLASS_E2E_KUBECONFIG"):
        pytest.skip("needs an empty control plane of its own")
    binaries = find_binaries(tools.require("helm"))
    if isinstance(binaries, str):
        pytest.skip(f"Argo CD needs {binaries}")
    folder = tmp_path_factory.mktemp("argocd-world-")
    for part in ("plane", "git", "argocd"):
        (folder / part).mkdir()
    with contextlib.ExitStack() as stack:
        flags = {"kube-controller-manager": QUOTA_SYNC}
        plane = stack.enter_context(running_control_plane(folder / "plane", minor, flags))
        kube = KubeClient(plane.admin)
        for node in (*NODES, *MORE_NODES):
            add_node(kube, node)
        git = GitRepository(folder / "git")
        stack.enter_context(running_argocd(folder / "argocd", binaries, plane.kubeconfig, kube))
        found = World(plane, kube, git, folder)
        for name in ("projects", "application"):
            for manifest in yaml.safe_load_all(git.read(f"examples/argocd/root/{name}.yaml")):
                kube.apply(manifest)
        yield found
        if found.operator is not None and found.operator.running:
            found.operator.stop()


@pytest.fixture(scope="module")
def argocd() -> Path:
    """The binary alone, for what needs no cluster."""
    found = build_argocd()
    if found is None:
        pytest.skip("Argo CD needs a Go toolchain to be built with")
    return found


def test_the_fixtures_pass_in_argo_cds_own_lua(argocd: Path) -> None:
    done = subprocess.run([argocd, "health-tests", CUSTOMIZATIONS], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(CUSTOMIZATIONS.glob("*/*/testdata/*.yaml"))) == int(done.stdout.split()[0])


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param("healthy", "Current", id="healthy"),
        pytest.param("suspended", "Current", id="suspended"),
        pytest.param("progressing", "InProgress", id="progressing"),
        pytest.param("stale_generation", "InProgress", id="edited since"),
        pytest.param("degraded", "Failed", id="degraded"),
        pytest.param("no_status", "Current", id="not seen yet, which kstatus cannot know"),
    ],
)
def test_kstatus_needs_no_script_to_read_our_conditions(argocd: Path, state: str, expected: str) -> None:
    fixtures = sorted((CUSTOMIZATIONS / "windlass.dev").glob(f"*/testdata/{state}*.yaml"))

    printed = subprocess.run([argocd, "kstatus", *fixtures], capture_output=True, text=True, check=True).stdout

    assert fixtures
    assert [line.split()[0] for line in printed.splitlines()] == [expected] * len(fixtures)


def test_services_wait_until_an_operator_has_seen_the_tenants(world: World) -> None:
    eventually(world.applications, lambda found: "windlass-fleet" in found, timeout_s=SYNC_TIMEOUT_S)
    time.sleep(5)

    assert world.applications()["windlass-operator"] == ("Synced", "Healthy")
    assert world.applications()["windlass-fleet"][1] == "Progressing"
    assert "windlass-services" not in world.applications()


def test_the_app_of_apps_brings_everything_up_in_its_waves(world: World) -> None:
    world.start_operator()

    world.wait_for("windlass-services", "Synced", "Suspended")  # one of the samples is parked
    eventually(world.applications, lambda found: found["windlass"] == ("Synced", "Suspended"), timeout_s=SYNC_TIMEOUT_S)

    assert {name: world.applications()[name] for name in WAVES[:-1]} == dict.fromkeys(WAVES[:-1], ("Synced", "Healthy"))
    made = [world.application(name)["metadata"]["creationTimestamp"] for name in WAVES]
    assert made == sorted(made)
    assert world.resources("windlass-services") == {
        "InferenceService/chat": ("Synced", "Healthy"),
        "InferenceService/chat-next": ("Synced", "Suspended"),
        "InferenceService/classifier": ("Synced", "Healthy"),
        "InferenceService/summaries": ("Synced", "Healthy"),
    }
    fleet = world.resources("windlass-fleet")
    assert {name.partition("/")[0] for name in fleet} == {"GPUClass", "Tenant"}
    assert set(fleet.values()) == {("Synced", "Healthy")}


def test_an_edit_in_git_rolls_out_and_is_healthy_when_it_is_ready(world: World) -> None:
    text = world.git.read("examples/fleet/services.yaml")
    text = text.replace("timeoutSeconds: 120", "timeoutSeconds: 90").replace("suspend: true", "suspend: false")
    text = text.replace("pvc://models/qwen3-8b", "hf://Qwen/Qwen3-8B@main")  # there is no such claim here
    world.git.write("examples/fleet/services.yaml", text, "Drain faster, start the next release")

    world.wait_for("windlass-services", "Synced", "Healthy")

    assert is_ready(find(world.kube, "chat", "search-prod"))
    assert find(world.kube, "chat-next", "search-staging")["status"]["readyReplicas"] == 1
    pod = deployment(world.kube, "chat", "search-prod")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 105


def test_an_edit_of_the_live_object_is_taken_back(world: World) -> None:
    chat = find(world.kube, "chat", "search-prod")

    world.kube.merge(chat, {"spec": {"drain": {"timeoutSeconds": 7}}})

    eventually(
        lambda: find(world.kube, "chat", "search-prod")["spec"]["drain"]["timeoutSeconds"],
        lambda seconds: seconds == 90,
        timeout_s=SYNC_TIMEOUT_S,
    )
    world.wait_for("windlass-services", "Synced", "Healthy")


def test_no_child_bears_a_mark_of_argo_cd(world: World) -> None:
    kinds = (("apps/v1", "Deployment"), ("v1", "Service"), ("v1", "Namespace"), ("v1", "ResourceQuota"), ("v1", "Pod"))

    children = [child for api, kind in kinds for child in world.kube.list(api, kind, selector=OWNED)]

    assert len(children) > len(kinds)
    for child in children:
        keys = {*child["metadata"].get("labels", {}), *child["metadata"].get("annotations", {})}
        assert not [key for key in keys if key.startswith("argocd.argoproj.io/")], child["metadata"]["name"]


def test_nothing_differs_and_nobody_writes_while_autoscalers_and_labellers_do(world: World) -> None:
    kube, audit = world.kube, AuditLog(world.plane.audit_log)
    synced = {name: world.application(name)["status"]["operationState"]["finishedAt"] for name in WAVES}
    chat = find(kube, "chat", "search-prod")
    compared, verdicts = set(), set()
    mark = audit.mark()

    deadline = time.monotonic() + NOISE_S
    for count in itertools.count():
        scale = kube.path_of(deployment(kube, "chat", "search-prod")) + "/scale?fieldManager=kube-controller-manager"
        kube.request("PATCH", scale, {"spec": {"replicas": 2 + count % 3}}, "application/merge-patch+json")
        kube.merge(chat, {"metadata": {"labels": {"example.com/cost": f"{count}"}}})
        time.sleep(0.5)
        compared.add(world.application("windlass-services")["status"]["reconciledAt"])
        verdicts |= {found[0] for name, found in world.applications().items() if name in WAVES}
        if time.monotonic() > deadline:
            break
    written = audit.writes(mark, f"system:serviceaccount:{SYSTEM}:{ACCOUNT}")

    assert len(compared) > 3, "Argo CD has not looked often enough to prove anything"
    assert verdicts == {"Synced"}
    assert {name: world.application(name)["status"]["operationState"]["finishedAt"] for name in WAVES} == synced
    assert {write.resource for write in written} <= {
        "inferenceservices/status",
        "tenants/status",
        "gpuclasses/status",
        "events",
    }
    world.wait_for("windlass-services", "Synced", "Healthy")


def test_a_service_beyond_its_quota_is_degraded_with_the_reason(world: World) -> None:
    before = world.git.read("examples/fleet/services.yaml")
    world.git.write("examples/fleet/services.yaml", before.replace("replicas: 3", "replicas: 30"), "Ask for too much")

    world.wait_for("windlass-services", "Synced", "Degraded")

    resources = world.application("windlass-services")["status"]["resources"]
    health = next(item["health"] for item in resources if item["name"] == "summaries")
    assert health["status"] == "Degraded"
    assert health["message"].startswith("Quota")
    assert "7" in health["message"]
    world.git.write("examples/fleet/services.yaml", before, "Ask for what there is")
    world.wait_for("windlass-services", "Synced", "Healthy")


@pytest.mark.parametrize(
    ("ignored", "least"),
    [
        pytest.param({"managedFieldsManagers": ["kube-controller-manager"]}, 4, id="by field manager"),
        pytest.param({"jsonPointers": ["/spec/replicas"]}, 5, id="by path"),
    ],
)
def test_an_own_autoscaler_and_replicas_in_git_get_along_with_the_documented_exception(
    world: World, ignored: dict[str, list[str]], least: int
) -> None:
    path = "examples/argocd/apps/50-services.yaml"
    application = yaml.safe_load(world.git.read(path))
    exception = {"group": "windlass.dev", "kind": "InferenceService", **ignored}
    application["spec"]["ignoreDifferences"] = [exception]
    options = application["spec"]["syncPolicy"]["syncOptions"]
    application["spec"]["syncPolicy"]["syncOptions"] = [*options[:2], "RespectIgnoreDifferences=true"]
    world.git.write(path, yaml.safe_dump(application), f"Let an autoscaler own the replicas, {least} at least")
    eventually(
        lambda: world.application("windlass-services")["spec"].get("ignoreDifferences"),
        lambda found: found == [exception],
        timeout_s=SYNC_TIMEOUT_S,
    )
    target = {"apiVersion": API, "kind": "InferenceService", "name": "summaries"}
    usage = {"type": "Utilization", "averageUtilization": 70}
    autoscaler: Manifest = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "own", "namespace": "research"},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": least,
            "maxReplicas": 6,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": usage}}],
        },
    }

    world.kube.apply(autoscaler)
    eventually(lambda: find(world.kube, "summaries", "research")["spec"]["replicas"], lambda count: count == least)
    text = world.git.read("examples/fleet/services.yaml")
    edited = re.sub("maxQueuedRequests: .*", f"maxQueuedRequests: {1000 + least}", text)
    world.git.write("examples/fleet/services.yaml", edited, "Queue less")
    world.wait_for("windlass-services", "Synced", "Healthy")
    wait_ready(world.kube, "summaries", "research")
    summaries = eventually(
        lambda: find(world.kube, "summaries", "research"), lambda found: found["status"]["replicas"] == least
    )

    assert summaries["spec"]["limits"]["maxQueuedRequests"] == 1000 + least
    assert summaries["spec"]["replicas"] == least
    assert summaries["status"]["readyReplicas"] == least
    world.kube.delete("autoscaling/v2", "HorizontalPodAutoscaler", "own", "research")


def test_deleting_everything_finishes_with_the_operator_stopped(world: World) -> None:
    assert world.operator is not None
    assert world.operator.stop() == 0

    world.kube.delete(ARGO_API, "Application", "windlass", NAMESPACE)

    eventually(world.applications, lambda found: not found, timeout_s=SYNC_TIMEOUT_S)
    assert world.kube.list(API, "InferenceService") == []
    selector = f"{OWNED},app.kubernetes.io/component=runtime"
    for api, kind in (("apps/v1", "Deployment"), ("v1", "Service"), ("v1", "Pod")):
        eventually(lambda api=api, kind=kind: world.kube.list(api, kind, selector=selector), lambda found: not found)
    assert {tenant["metadata"]["name"] for tenant in world.kube.list(API, "Tenant")} == {"search", "research"}
    assert world.kube.get("v1", "Namespace", "search-prod") is not None
