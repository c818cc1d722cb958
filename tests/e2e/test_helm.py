"""Both charts and the plain manifests on a real API server: installed, upgraded, rolled back, uninstalled.

A control plane of its own, because CRDs come and go here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.audit_log import AuditLog
from support.control_plane import ControlPlane, running_control_plane
from support.fake_fleet import NODES, add_node
from support.kube_client import KubeClient, Manifest, RefusedError, eventually
from support.operator_process import OperatorProcess
from support.services import API, service, tenant, wait_ready
from support.tokens import request_token
from support.tools import Toolset

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane]

ROOT = Path(__file__).resolve().parents[2]
CHART, CRD_CHART = str(ROOT / "helm/windlass"), str(ROOT / "helm/windlass-crds")
MANIFESTS = str(ROOT / "helm/manifests")
VALUES = sorted((ROOT / "tests/control/chart/values").glob("*.yaml"))
SYSTEM = "windlass-system"
ABSENT_GROUPS = ("monitoring.coreos.com",)
"""API groups of other projects that this control plane does not serve."""
CRDS = (
    "batchinferences.windlass.dev",
    "gpuclasses.windlass.dev",
    "inferenceservices.windlass.dev",
    "tenants.windlass.dev",
)
TIERS = ("windlass-realtime", "windlass-standard", "windlass-batch")
ACCOUNT = f"system:serviceaccount:{SYSTEM}:windlass-operator"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def plane(minor: str, tools: Toolset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane without our CRDs."""
    with running_control_plane(tmp_path_factory.mktemp(f"helm-{minor}-"), minor) as plane:
        yield plane


@pytest.fixture(scope="module")
def admin(plane: ControlPlane) -> KubeClient:
    """Its administrator; two fake nodes take the operator's pods."""
    client = KubeClient(plane.admin)
    for node in NODES:
        if node.name.startswith("plain"):
            add_node(client, node)
    for namespace in ("team-a", "team-b"):
        client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    return client


@pytest.fixture(scope="module")
def tool(plane: ControlPlane, tools: Toolset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command line tool as administrator; returns its output. Raises AssertionError with its words."""
    home = tmp_path_factory.mktemp("home")
    environment = {"KUBECONFIG": str(plane.kubeconfig), "HOME": str(home), "PATH": "/usr/bin:/bin"}

    def run(name: str, *arguments: str, stdin: str | None = None) -> str:
        command = [str(tools.require(name)), *arguments]
        done = subprocess.run(
            command, input=stdin, text=True, capture_output=True, env=environment, timeout=120, check=False
        )
        assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def helm(tool: Run) -> Run:
    return partial(tool, "helm")


@pytest.fixture(params=["helm", "helm-3"])
def each_helm(tool: Run, request: pytest.FixtureRequest) -> Run:
    """Helm 4, which applies on the server, and Helm 3, which patches what it finds."""
    return partial(tool, request.param)


@pytest.fixture
def kubectl(tool: Run) -> Run:
    return partial(tool, "kubectl")


@pytest.fixture
def empty(admin: KubeClient, tool: Run) -> Iterator[None]:
    """Nothing of ours is there before the test; whatever it leaves is taken away after it."""
    yield
    for release in ("windlass", "windlass-crds"):
        tool("helm", "uninstall", release, "--namespace", SYSTEM, "--ignore-not-found", "--wait")
    tool("kubectl", "delete", "--kustomize", MANIFESTS, "--ignore-not-found", "--wait=false")
    for name in CRDS:
        admin.delete("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
    for name in TIERS:
        admin.delete("scheduling.k8s.io/v1", "PriorityClass", name)
    admin.delete("v1", "Namespace", SYSTEM)
    eventually(lambda: leftovers(admin), lambda found: not found, timeout_s=60)


def leftovers(admin: KubeClient) -> list[str]:
    """Names of what a test has left."""
    crds = [name for name in CRDS if admin.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)]
    return crds + ([SYSTEM] if admin.get("v1", "Namespace", SYSTEM) else [])


def install(helm: Run, *arguments: str) -> None:
    """Both charts, CRDs first, and wait until the operator's pods are ready."""
    helm("upgrade", "--install", "windlass-crds", CRD_CHART, "--namespace", SYSTEM, "--create-namespace", "--wait")
    helm("upgrade", "--install", "windlass", CHART, "--namespace", SYSTEM, "--wait", "--timeout", "90s", *arguments)


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def stored(admin: KubeClient, manifests: list[Manifest]) -> list[Manifest]:
    """The objects as the server has them. Raises AssertionError for a missing one."""
    found = []
    for item in manifests:
        metadata = item["metadata"]
        live = admin.get(item["apiVersion"], item["kind"], metadata["name"], metadata.get("namespace", ""))
        assert live is not None, f"{item['kind']} {metadata['name']} is missing"
        found.append(live)
    return found


def versions(admin: KubeClient, manifests: list[Manifest]) -> dict[str, str]:
    """resourceVersion of each object: moves with every write."""
    return {
        f"{live['kind']}/{live['metadata']['name']}": live["metadata"]["resourceVersion"]
        for live in stored(admin, manifests)
    }


def operator_deployment(admin: KubeClient) -> Manifest:
    found = admin.get("apps/v1", "Deployment", "windlass-operator", SYSTEM)
    assert found is not None
    return found


def wait_settled(admin: KubeClient) -> None:
    """Wait until the Deployment controller has nothing more to write."""

    def settled(live: Manifest) -> bool:
        status, wanted = live.get("status", {}), live["spec"]["replicas"]
        counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
        return status.get("observedGeneration") == live["metadata"]["generation"] and counts == [wanted] * 3

    eventually(lambda: operator_deployment(admin), settled, timeout_s=60)


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_every_render_passes_a_strict_server_side_dry_run(
    admin: KubeClient, helm: Run, kubectl: Run, values: Path
) -> None:
    text = helm("template", "windlass", CHART, "--namespace", SYSTEM, "--values", str(values))
    text += helm("template", "windlass-crds", CRD_CHART)
    wanted = [item for item in documents(text) if not item["apiVersion"].startswith(ABSENT_GROUPS)]
    for namespace in {item["metadata"].get("namespace") for item in wanted} - {None}:
        admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    command = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", "-")
    shown = kubectl(*command, stdin=yaml.safe_dump_all(wanted))

    assert len(shown.splitlines()) == len(wanted)


@pytest.mark.usefixtures("empty")
def test_both_charts_install_and_the_operator_is_taken_by_a_restricted_namespace(
    admin: KubeClient, helm: Run, kubectl: Run
) -> None:
    restricted = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": restricted}})

    install(helm)

    assert operator_deployment(admin)["status"]["availableReplicas"] == 2
    pods = admin.list("v1", "Pod", SYSTEM, "app.kubernetes.io/component=operator")
    assert {pod["spec"]["nodeName"] for pod in pods} == {"plain-1", "plain-2"}
    managers = {(e["manager"], e["operation"]) for e in operator_deployment(admin)["metadata"]["managedFields"]}
    assert ("helm", "Apply") in managers
    assert "inferenceservices" in kubectl("api-resources", "--api-group", "windlass.dev", "--output", "name")


@pytest.mark.usefixtures("empty")
def test_installing_again_writes_nothing(admin: KubeClient, each_helm: Run) -> None:
    install(each_helm)
    wait_settled(admin)
    wanted = [
        item
        for release in ("windlass", "windlass-crds")
        for item in documents(each_helm("get", "manifest", release, "--namespace", SYSTEM))
    ]
    before = versions(admin, wanted)

    install(each_helm)
    install(each_helm)

    assert len(before) > 12
    assert versions(admin, wanted) == before


@pytest.mark.usefixtures("empty")
def test_an_upgrade_rolls_the_operator_and_a_rollback_returns_it(admin: KubeClient, each_helm: Run) -> None:
    install(each_helm)
    wait_settled(admin)
    first = operator_deployment(admin)

    install(each_helm, "--set", "operator.workerCount=16")
    wait_settled(admin)
    second = operator_deployment(admin)
    each_helm("rollback", "windlass", "1", "--namespace", SYSTEM, "--wait", "--timeout", "90s")
    wait_settled(admin)
    third = operator_deployment(admin)

    assert worker_count(second) == "16"
    assert second["spec"]["selector"] == first["spec"]["selector"]
    assert third["spec"]["template"] == first["spec"]["template"]
    assert first["metadata"]["uid"] == third["metadata"]["uid"]


def worker_count(live: Manifest) -> str:
    environment = live["spec"]["template"]["spec"]["containers"][0]["env"]
    return str(next(item["value"] for item in environment if item["name"] == "WINDLASS_WORKER_COUNT"))


@pytest.mark.usefixtures("empty")
def test_releases_of_helm_3_are_carried_on_by_helm_4(admin: KubeClient, helm: Run, tool: Run) -> None:
    install(partial(tool, "helm-3"))
    wait_settled(admin)
    before = operator_deployment(admin)

    install(helm)
    wait_settled(admin)

    assert operator_deployment(admin)["spec"] == before["spec"]
    assert operator_deployment(admin)["metadata"]["uid"] == before["metadata"]["uid"]


@pytest.mark.usefixtures("empty")
def test_replicas_that_somebody_scaled_come_back_with_the_next_upgrade_only(admin: KubeClient, helm: Run) -> None:
    install(helm)
    wait_settled(admin)
    admin.merge(operator_deployment(admin), {"spec": {"replicas": 3}})

    install(helm, "--set", "replicas=2", "--force-conflicts")

    assert operator_deployment(admin)["spec"]["replicas"] == 2


@pytest.mark.usefixtures("empty")
def test_crds_and_user_objects_outlive_both_charts(admin: KubeClient, each_helm: Run) -> None:
    install(each_helm)
    objects = [
        service("kept", "team-a"),
        tenant("kept", "team-a"),
        {
            "apiVersion": API,
            "kind": "GPUClass",
            "metadata": {"name": "kept"},
            "spec": {"nodeSelector": {"a": "b"}, "memory": "80Gi", "computeCapability": "8.0"},
        },
    ]
    created = {item["kind"]: admin.apply(item)["metadata"]["uid"] for item in objects}
    chart = documents(each_helm("get", "manifest", "windlass", "--namespace", SYSTEM))

    each_helm("uninstall", "windlass", "--namespace", SYSTEM, "--wait")
    each_helm("uninstall", "windlass-crds", "--namespace", SYSTEM, "--wait")

    assert {item["kind"]: item["metadata"]["uid"] for item in stored(admin, objects)} == created
    left = [item for item in chart if exists(admin, item)]
    assert [item["metadata"]["name"] for item in left] == []
    install(each_helm)
    assert {item["kind"]: item["metadata"]["uid"] for item in stored(admin, objects)} == created


def exists(admin: KubeClient, item: Manifest) -> bool:
    metadata = item["metadata"]
    return admin.get(item["apiVersion"], item["kind"], metadata["name"], metadata.get("namespace", "")) is not None


@pytest.mark.usefixtures("empty")
def test_switching_the_crds_off_leaves_them(admin: KubeClient, helm: Run) -> None:
    install(helm)
    admin.apply(service("kept", "team-a"))

    helm("upgrade", "windlass-crds", CRD_CHART, "--namespace", SYSTEM, "--set", "crds.install=false", "--wait")

    assert documents(helm("get", "manifest", "windlass-crds", "--namespace", SYSTEM)) == []
    assert admin.get(API, "InferenceService", "kept", "team-a") is not None


@pytest.mark.usefixtures("empty")
def test_the_crd_chart_takes_over_crds_that_were_applied_by_hand(admin: KubeClient, helm: Run, kubectl: Run) -> None:
    kubectl("apply", "--server-side", "--filename", str(ROOT / "crds"))
    uid = stored(admin, [crd()])[0]["metadata"]["uid"]

    command = ("upgrade", "--install", "windlass-crds", CRD_CHART, "--namespace", SYSTEM, "--create-namespace")
    helm(*command, "--take-ownership", "--force-conflicts", "--wait")

    (live,) = stored(admin, [crd()])
    assert live["metadata"]["uid"] == uid
    assert live["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def crd() -> Manifest:
    metadata = {"name": CRDS[0]}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": metadata}


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("side", ["--server-side", "--server-side=false"], ids=["server-side", "client-side"])
def test_plain_manifests_install_and_applying_them_again_writes_nothing(
    admin: KubeClient, kubectl: Run, side: str
) -> None:
    apply = partial(kubectl, "apply", side, "--kustomize", MANIFESTS)
    wanted = documents((ROOT / "helm/manifests/install.yaml").read_text())

    apply()
    kubectl("--namespace", SYSTEM, "rollout", "status", "deployment/windlass-operator", "--timeout=90s")
    wait_settled(admin)
    for name in CRDS:
        kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
    before = versions(admin, wanted)
    apply()

    assert versions(admin, wanted) == before
    admin.apply(service("chat", "team-a"), dry_run=True)


@pytest.fixture
def run_operator(plane: ControlPlane, admin: KubeClient, tmp_path: Path) -> Iterator[Callable[[], OperatorProcess]]:
    """Start the operator as the chart's account, with the environment that the chart's Deployment gives it."""
    started: list[OperatorProcess] = []

    def start() -> OperatorProcess:
        container = operator_deployment(admin)["spec"]["template"]["spec"]["containers"][0]
        # The flags of the process name the kubeconfig and the port; they win over the environment.
        environment = {item["name"]: item["value"] for item in container["env"]}
        access = plane.access(request_token(admin, SYSTEM, "windlass-operator"))
        kubeconfig = access.write_kubeconfig(tmp_path / "kubeconfig.json")
        process = OperatorProcess(kubeconfig, tmp_path / "operator.log", environment=environment)
        started.append(process)
        process.start()
        eventually(process.leads, bool, timeout_s=30)
        return process

    yield start
    for process in started:
        if process.running:
            process.stop()


@pytest.mark.usefixtures("empty")
def test_in_namespaced_mode_the_operator_works_there_and_asks_for_nothing_that_it_may_not(
    plane: ControlPlane, admin: KubeClient, helm: Run, run_operator: Callable[[], OperatorProcess]
) -> None:
    install(helm, "--set", "watchNamespaces={team-a}")
    mark = AuditLog(plane.audit_log).mark()
    run_operator()
    subjects = [{"kind": "User", "name": "ada", "role": "Editor"}]

    admin.apply(tenant("a", "team-a", subjects=subjects))
    admin.apply(service("chat", "team-a"))
    admin.apply(service("chat", "team-b"))

    wait_ready(admin, "chat", "team-a")
    eventually(lambda: admin.get("rbac.authorization.k8s.io/v1", "Role", "windlass-editor", "team-a"), bool)
    eventually(lambda: conditions(admin, "Tenant", "a"), lambda found: found.get("Ready") == "True")
    eventually(lambda: admin.list("events.k8s.io/v1", "Event", "default"), lambda found: any(map(is_of_tenant, found)))
    assert admin.get("apps/v1", "Deployment", "chat", "team-b") is None
    assert "status" not in (admin.get(API, "InferenceService", "chat", "team-b") or {})
    refused = [write for write in AuditLog(plane.audit_log).writes(mark, ACCOUNT) if write.code == 403]
    assert refused == []
    for name in TIERS:
        assert admin.get("scheduling.k8s.io/v1", "PriorityClass", name) is not None


def conditions(admin: KubeClient, kind: str, name: str) -> dict[str, str]:
    found = admin.get(API, kind, name) or {}
    return {item["type"]: item["status"] for item in (found.get("status", {}).get("conditions") or ())}


def is_of_tenant(event: Manifest) -> bool:
    regarding: dict[str, Any] = event["regarding"]
    return bool(regarding["kind"] == "Tenant")


@pytest.mark.usefixtures("empty")
def test_without_tenant_roles_only_the_roles_of_members_are_refused(
    plane: ControlPlane, admin: KubeClient, helm: Run, run_operator: Callable[[], OperatorProcess]
) -> None:
    install(helm, "--set", "rbac.tenantRoles=false")
    run_operator()

    admin.apply(tenant("a", "team-a", subjects=[{"kind": "User", "name": "ada", "role": "Editor"}]))

    def problems() -> str:
        found = admin.get(API, "Tenant", "a") or {}
        return str(found.get("status", {}).get("conditions"))

    said = eventually(problems, lambda found: "Role/team-a/windlass-editor" in found)
    assert "LimitRange" not in said
    account = KubeClient(plane.access(request_token(admin, SYSTEM, "windlass-operator")))
    assert not account.may("patch", "windlass.dev", "inferenceservices", "team-a")


@pytest.mark.usefixtures("empty")
def test_names_bound_the_cluster_scoped_objects_that_the_operator_writes(
    plane: ControlPlane, admin: KubeClient, helm: Run
) -> None:
    install(helm, "--set", "watchNamespaces={team-a}")
    account = KubeClient(plane.access(request_token(admin, SYSTEM, "windlass-operator")))
    ours, other = (priority_class(name) for name in ("windlass-batch", "windlass-other"))

    account.apply(ours, dry_run=True)
    account.apply(namespace("team-a"), dry_run=True)
    for manifest in (other, namespace("team-b"), namespace("team-c")):
        with pytest.raises(RefusedError) as caught:
            account.apply(manifest, dry_run=True)
        assert caught.value.code == 403


def namespace(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def priority_class(name: str) -> Manifest:
    metadata = {"name": name}
    return {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": metadata, "value": 1}


@pytest.mark.usefixtures("empty")
def test_the_clusters_own_roles_include_services(plane: ControlPlane, admin: KubeClient, helm: Run) -> None:
    install(helm)
    read, write = {"get", "list", "watch"}, {"create", "update", "patch", "delete"}
    expected = {"view": read, "edit": read | write, "admin": read | write}
    people = {role: bind_person(plane, admin, role) for role in expected}

    def verbs(person: KubeClient) -> set[str]:
        return {verb for verb in read | write if person.may(verb, "windlass.dev", "inferenceservices", "team-b")}

    eventually(
        lambda: {role: sorted(verbs(person)) for role, person in people.items()}, lambda found: all(found.values())
    )

    assert {role: verbs(person) for role, person in people.items()} == expected
    for person in people.values():
        assert not person.may("patch", "windlass.dev", "inferenceservices/status", "team-b")
        assert not person.may("patch", "windlass.dev", "tenants")
        assert not person.may("get", "windlass.dev", "inferenceservices", "team-a")


def bind_person(plane: ControlPlane, admin: KubeClient, role: str) -> KubeClient:
    """A client of somebody who holds one of the cluster's own roles in team-b."""
    metadata = {"name": role, "namespace": "team-b"}
    admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    group = "rbac.authorization.k8s.io"
    binding: Manifest = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": metadata}
    binding["roleRef"] = {"apiGroup": group, "kind": "ClusterRole", "name": role}
    binding["subjects"] = [{"kind": "ServiceAccount", **metadata}]
    admin.apply(binding)
    return KubeClient(plane.access(request_token(admin, "team-b", role)))
