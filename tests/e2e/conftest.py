"""Fixtures of the end-to-end suite. Everything runs once per Kubernetes minor, on a control plane of its own.

`--kubernetes 1.37` narrows it to some minors. WINDLASS_E2E_KUBECONFIG runs it against a cluster that somebody else
started; tests marked `own_plane`, which stop servers or read the audit log, are skipped there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.audit_log import AuditLog
from support.conformance import Conformance
from support.control_plane import ControlPlane, ForeignCluster, foreign_cluster, running_control_plane
from support.fake_fleet import create_fleet, remove_fleet
from support.kube_client import KubeClient, eventually
from support.operator_process import OperatorProcess
from support.patience import stretched
from support.services import remove_services, tenant
from support.tokens import request_token
from support.tools import Toolset, go_is_present, known_minors, toolset

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CRDS = sorted(path for path in (ROOT / "crds").glob("*.yaml") if path.name != "kustomization.yaml")
FOREIGN = "cluster"
SYSTEM = "windlass-system"
QUOTA = {"h200": 6, "a100": 4, "a100-slice": 4, "a100-mig": 1, "edge-l4": 2, "shared-l4": 4, "b200": 6}
Run = Callable[..., str]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which minors to run."""
    parser.addoption("--kubernetes", default="", help="Kubernetes minors, comma-separated; default: all with pins.")


def pytest_configure(config: pytest.Config) -> None:
    """Collect results for docs/reference/conformance.md."""
    config.pluginmanager.register(Conformance(ROOT / "build" / "conformance.json"), "conformance")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run of the suite per minor."""
    if "minor" not in metafunc.fixturenames:
        return
    foreign = os.environ.get("WINDLASS_E2E_KUBECONFIG")
    asked = metafunc.config.getoption("--kubernetes")
    minors = [FOREIGN] if foreign else asked.split(",") if asked else list(known_minors())
    metafunc.parametrize("minor", minors, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what a foreign cluster cannot show; of several runs only that of the newest minor has tests without one."""
    asked = config.getoption("--kubernetes")
    for item in items:
        minor = item.callspec.params.get("minor") if hasattr(item, "callspec") else None
        if minor == FOREIGN and item.get_closest_marker("own_plane"):
            reason = "needs a control plane that the test may stop and whose audit log it may read"
            item.add_marker(pytest.mark.skip(reason=reason))
    if asked and known_minors()[0] not in asked.split(","):
        items[:] = [item for item in items if hasattr(item, "callspec") and "minor" in item.callspec.params]


@pytest.fixture(scope="session")
def minor(request: pytest.FixtureRequest) -> str:
    """The Kubernetes minor of this run; `cluster` on one that somebody else started."""
    found: str = request.param
    return found


@pytest.fixture(scope="session")
def tools(minor: str) -> Toolset:
    """The binaries. Where Go is present a missing one is a failure, elsewhere the suite skips and names it."""
    found = toolset(known_minors()[0] if minor == FOREIGN else minor)
    if found.missing:
        text = f"missing binaries: {', '.join(found.missing)}; install Go, or set KUBEBUILDER_ASSETS or PATH"
        if go_is_present():
            pytest.fail(text)
        pytest.skip(text)
    return found


@pytest.fixture(scope="session")
def control_plane(
    minor: str, tools: Toolset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane | ForeignCluster]:
    """A running control plane."""
    folder = tmp_path_factory.mktemp(f"control-plane-{minor}-")
    if minor == FOREIGN:
        with foreign_cluster(folder, Path(os.environ["WINDLASS_E2E_KUBECONFIG"]), tools) as cluster:
            yield cluster
        return
    with running_control_plane(folder, minor) as plane:
        yield plane


@pytest.fixture(scope="session")
def audit(control_plane: ControlPlane) -> AuditLog:
    """Writes as the API server saw them."""
    return AuditLog(control_plane.audit_log)


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane, tools: Toolset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run kubectl as administrator; returns its output. Raises AssertionError with its words when it fails."""
    home = tmp_path_factory.mktemp("kubectl")
    environment = {"KUBECONFIG": str(control_plane.kubeconfig), "HOME": str(home)}
    return lambda *arguments, **options: run_tool(tools.require("kubectl"), arguments, environment, **options)


@pytest.fixture(scope="session")
def helm(control_plane: ControlPlane, tools: Toolset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run Helm as administrator; returns its output. Raises AssertionError with its words when it fails."""
    home = tmp_path_factory.mktemp("helm")
    environment = {"KUBECONFIG": str(control_plane.kubeconfig), "HOME": str(home)}
    return lambda *arguments, **options: run_tool(tools.require("helm"), arguments, environment, **options)


@pytest.fixture(scope="session")
def kube(control_plane: ControlPlane) -> KubeClient:
    """A cluster-admin client on a control plane that has our CRDs."""
    client = KubeClient(control_plane.admin)
    crds = [yaml.safe_load(path.read_text()) for path in CRDS]
    for name in [client.apply(crd)["metadata"]["name"] for crd in crds]:
        eventually(lambda name=name: is_established(client, name), bool)
    return client


@pytest.fixture(scope="session")
def fleet(kube: KubeClient) -> Iterator[None]:
    """GPU nodes and classes, and one tenant, `a`, with namespace team-a and six H200s."""
    create_fleet(kube)
    for namespace in (SYSTEM, "team-a", "team-b"):
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kube.apply(tenant("a", "team-a", gpus=QUOTA))
    kube.apply(tenant("b", "team-b", gpus={"h200": 2}))
    yield
    remove_fleet(kube)


@pytest.fixture(scope="session")
def operator_kubeconfig(
    control_plane: ControlPlane, kube: KubeClient, fleet: None, helm: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Kubeconfig of the service account that the chart creates: the operator runs with exactly the chart's roles.

    The pods of the chart's own Deployment run on fake nodes and do nothing; the process that the tests start is real.
    """
    helm("upgrade", "--install", "windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM)
    (workload,) = kube.list("apps/v1", "Deployment", SYSTEM, "app.kubernetes.io/component=operator")
    account = workload["spec"]["template"]["spec"]["serviceAccountName"]
    token = request_token(kube, SYSTEM, account)
    return control_plane.access(token).write_kubeconfig(tmp_path_factory.mktemp("operator") / "kubeconfig.json")


@pytest.fixture(scope="session")
def operator_user(kube: KubeClient, operator_kubeconfig: Path) -> str:
    """The operator as the API server knows it."""
    (workload,) = kube.list("apps/v1", "Deployment", SYSTEM, "app.kubernetes.io/component=operator")
    return f"system:serviceaccount:{SYSTEM}:{workload['spec']['template']['spec']['serviceAccountName']}"


@pytest.fixture(scope="session")
def shared_operator(operator_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for many tests; use `operator`, which makes sure that it runs."""
    process = OperatorProcess(operator_kubeconfig, tmp_path_factory.mktemp("operator") / "operator.log")
    yield process
    if process.running:
        process.stop()


@pytest.fixture
def operator(shared_operator: OperatorProcess) -> OperatorProcess:
    """A running operator that leads. A test may stop, kill or restart it."""
    if not shared_operator.running:
        shared_operator.start()
    eventually(shared_operator.leads, bool, timeout_s=30)
    return shared_operator


@pytest.fixture
def no_operator(shared_operator: OperatorProcess) -> OperatorProcess:
    """The shared operator, stopped: for tests that start their own."""
    if shared_operator.running:
        shared_operator.stop()
    return shared_operator


@pytest.fixture
def grant(kube: KubeClient) -> Iterator[Callable[..., None]]:
    """Give tenant `a` other numbers of some GPU classes for one test."""

    def give(**gpus: int) -> None:
        kube.apply(tenant("a", "team-a", gpus=QUOTA | gpus))

    yield give
    kube.apply(tenant("a", "team-a", gpus=QUOTA))


@pytest.fixture
def clean(kube: KubeClient) -> Iterator[None]:
    """No service is left for the next test, whatever this one did."""
    yield
    remove_services(kube)


def run_tool(
    binary: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    *,
    input: str | None = None,
    timeout_s: float = 60,
) -> str:
    """Run one command line tool. Raises AssertionError with what it printed when it fails."""
    done = subprocess.run(
        [binary, *arguments],
        input=input,
        text=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], **environment},
        cwd=ROOT,
        timeout=stretched(timeout_s),
        check=False,
    )
    assert done.returncode == 0, f"{binary.name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


def is_established(kube: KubeClient, name: str) -> bool:
    """Whether a CRD is served."""
    crd = kube.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) or {}
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)
