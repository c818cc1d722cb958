"""A real Kubernetes control plane on loopback: etcd and the Kubernetes servers, with kwok in the place of kubelets.

Started in seconds, torn down by process id. RBAC is on, service accounts have tokens, the aggregation layer works, TLS
is verified, and every write is in the audit log.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from support.certificates import Authority, write_signing_key
from support.patience import stretched
from support.tools import Toolset, toolset

KWOK_STAGES = Path(__file__).resolve().parents[1] / "e2e" / "kwok-stages.yaml"
AUDIT_POLICY = Path(__file__).resolve().parents[1] / "e2e" / "audit-policy.yaml"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Access:
    """One API server, and one user of it."""

    url: str
    ca_file: Path
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None

    def ssl_context(self) -> ssl.SSLContext:
        """TLS that verifies the server, with the user's certificate where there is one."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if self.certificate is not None:
            context.load_cert_chain(str(self.certificate), str(self.key))
        return context

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say who asks; none with a certificate."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def write_kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        """A kubeconfig file of this user; returns its path."""
        user = {"token": self.token} if self.token else {}
        if self.certificate is not None:
            user |= {"client-certificate": str(self.certificate), "client-key": str(self.key)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": "e2e", "user": user}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e", "namespace": namespace}}],
            "current-context": "e2e",
        }
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path


@dataclass
class ControlPlane:
    """One running control plane. `admin` may do everything; `kubeconfig` names a file with it."""

    folder: Path
    tools: Toolset
    more_flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Further flags by binary, such as {"kwok": ["--pod-play-stage-parallelism=64"]}."""
    ports: tuple[int, ...] = field(default_factory=lambda: free_ports(5))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _admin: Access | None = None

    @property
    def url(self) -> str:
        """Address of the API server."""
        return f"https://127.0.0.1:{self.ports[2]}"

    @property
    def etcd_url(self) -> str:
        """Address of the store."""
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator, who logs in with a client certificate."""
        return self.folder / "kubeconfig.json"

    @property
    def audit_log(self) -> Path:
        """One JSON document per write, appended as they happen; see support.audit_log."""
        return self.folder / "audit.log"

    @property
    def admin(self) -> Access:
        """The administrator; valid after `start`."""
        assert self._admin is not None, "the control plane is not started"
        return self._admin

    def access(self, token: str) -> Access:
        """The user that a token names."""
        return Access(self.url, self.admin.ca_file, token)

    def start(self) -> None:
        """Start everything and wait until the API server is ready. Raises TimeoutError with the end of its log."""
        self._write_files()
        self.start_process("etcd", self._etcd_flags())
        self.start_process("kube-apiserver", self._api_server_flags())
        self._wait_ready()
        self.start_process("kube-controller-manager", self._controller_manager_flags())
        self.start_process("kube-scheduler", self._scheduler_flags())
        self.start_process("kwok", self._kwok_flags())

    def stop(self) -> None:
        """Stop what was started, newest first, each by its own process."""
        for name in reversed(list(self.processes)):
            self.stop_process(name)

    def start_process(self, name: str, flags: Sequence[str]) -> None:
        """Start one binary with its log beside its data."""
        command = [self.tools.require(name), *flags, *self.more_flags.get(name, ())]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def stop_process(self, name: str) -> None:
        """Stop one binary: SIGTERM, then SIGKILL after STOP_TIMEOUT_S."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            return
        process.kill()
        process.wait(STOP_TIMEOUT_S)

    def stop_api_server(self) -> None:
        """Stop the API server alone: what an upgrade of the control plane looks like to its clients."""
        self.stop_process("kube-apiserver")

    def start_api_server(self) -> None:
        """Start it again; data, certificates and tokens stay."""
        self.start_process("kube-apiserver", self._api_server_flags())
        self._wait_ready()

    def _write_files(self) -> None:
        folder = self.folder / "certificates"
        authority, front_proxy = Authority(folder, "authority"), Authority(folder / "front-proxy", "front-proxy")
        names = ("127.0.0.1", "10.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc")
        authority.server("api-server", names)
        front_proxy.client("aggregator")
        write_signing_key(folder / "service-accounts.key")
        user = authority.client("admin", "system:masters")
        self._admin = Access(self.url, authority.file, certificate=user.certificate, key=user.key)
        self._admin.write_kubeconfig(self.kubeconfig)

    def _etcd_flags(self) -> list[str]:
        peer = f"http://127.0.0.1:{self.ports[1]}"
        client = self.etcd_url
        urls = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        return ["--data-dir", "etcd", "--log-level", "error", "--unsafe-no-fsync", *urls]

    def _api_server_flags(self) -> list[str]:
        return [
            f"--etcd-servers={self.etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[2]}",
            "--tls-cert-file=certificates/api-server.crt",
            "--tls-private-key-file=certificates/api-server.key",
            "--client-ca-file=certificates/authority.crt",
            "--authorization-mode=RBAC",
            "--allow-privileged",  # so that only Pod Security stands between a tenant and the node
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=certificates/service-accounts.key",
            "--service-account-signing-key-file=certificates/service-accounts.key",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--requestheader-client-ca-file=certificates/front-proxy/front-proxy.crt",
            "--requestheader-allowed-names=aggregator",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            "--proxy-client-cert-file=certificates/front-proxy/aggregator.crt",
            "--proxy-client-key-file=certificates/front-proxy/aggregator.key",
            f"--audit-policy-file={AUDIT_POLICY}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-mode=blocking",  # a count taken right after a write already holds it
        ]

    def _controller_manager_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--use-service-account-credentials",
            "--service-account-private-key-file=certificates/service-accounts.key",
            "--root-ca-file=certificates/authority.crt",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[3]}",
            "--leader-elect=false",  # alone here, and it should outlive an API server that is away
            "--cert-dir=controller-manager-certificates",
            "--horizontal-pod-autoscaler-sync-period=2s",
        ]

    def _scheduler_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[4]}",
            "--leader-elect=false",  # alone here, and it should outlive an API server that is away
            "--cert-dir=scheduler-certificates",
        ]

    def _kwok_flags(self) -> list[str]:
        return kwok_flags(self.kubeconfig)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + stretched(START_TIMEOUT_S)
        while time.monotonic() < deadline and self.processes["kube-apiserver"].poll() is None:
            if _is_ready(self.admin):
                return
            time.sleep(0.1)
        tail = (self.folder / "kube-apiserver.log").read_text(errors="replace")[-2000:]
        raise TimeoutError(f"kube-apiserver is not ready after {START_TIMEOUT_S:.0f} s; its log ends:\n{tail}")


@dataclass
class ForeignCluster:
    """A cluster that somebody else started. Only kwok runs here, for the fake nodes that the tests create."""

    folder: Path
    tools: Toolset
    kubeconfig: Path
    admin: Access
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of the API server."""
        return self.admin.url

    def access(self, token: str) -> Access:
        """The user that a token names."""
        return Access(self.url, self.admin.ca_file, token)

    def start(self) -> None:
        """Start kwok against it."""
        command = [self.tools.require("kwok"), *kwok_flags(self.kubeconfig)]
        with (self.folder / "kwok.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def stop(self) -> None:
        """Stop kwok."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(STOP_TIMEOUT_S)


def kwok_flags(kubeconfig: Path) -> list[str]:
    """Flags of kwok: it plays the kubelet of nodes that carry its label, and of no others."""
    return [
        f"--kubeconfig={kubeconfig}",
        "--manage-nodes-with-label-selector=windlass.dev/fake-node=true",
        "--node-lease-duration-seconds=40",
        f"--config={KWOK_STAGES}",
    ]


def read_access(kubeconfig: Path, folder: Path) -> Access:
    """The current user of a kubeconfig with a token or a client certificate. Raises ValueError for other logins."""
    config = yaml.safe_load(kubeconfig.read_text())

    def entry(section: str, name: str) -> dict[str, str]:
        found: dict[str, str] = next(item for item in config[section] if item["name"] == name)[section.rstrip("s")]
        return found

    context = entry("contexts", config["current-context"])
    cluster, user = entry("clusters", context["cluster"]), entry("users", context["user"])
    certificate, key = (_pem_file(user, name, folder) for name in ("client-certificate", "client-key"))
    authority = _pem_file(cluster, "certificate-authority", folder)
    if authority is None or not (user.get("token") or certificate):
        raise ValueError(f"{kubeconfig}: expected a certificate authority and a token or client certificate")
    return Access(cluster["server"], authority, user.get("token", ""), certificate, key)


def _pem_file(section: Mapping[str, str], name: str, folder: Path) -> Path | None:
    import base64

    if section.get(name):
        return Path(section[name])
    data = section.get(f"{name}-data")
    if not data:
        return None
    path = folder / f"{name}.pem"
    path.write_bytes(base64.b64decode(data))
    path.chmod(0o600)
    return path


def _is_ready(access: Access) -> bool:
    with contextlib.suppress(OSError, urllib.error.URLError):
        request = urllib.request.Request(f"{access.url}/readyz", headers=access.headers)
        with urllib.request.urlopen(request, context=access.ssl_context(), timeout=2):
            return True
    return False


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return tuple(item.getsockname()[1] for item in sockets)


@contextlib.contextmanager
def running_control_plane(
    folder: Path, minor: str = "", more_flags: Mapping[str, Sequence[str]] | None = None
) -> Iterator[ControlPlane]:
    """A started control plane of a minor (the newest by default) that is gone when the block ends, however it ends."""
    from support.tools import known_minors

    plane = ControlPlane(folder, toolset(minor or known_minors()[0]), more_flags or {})
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@contextlib.contextmanager
def foreign_cluster(folder: Path, kubeconfig: Path, tools: Toolset) -> Iterator[ForeignCluster]:
    """A cluster that WINDLASS_E2E_KUBECONFIG names."""
    cluster = ForeignCluster(folder, tools, kubeconfig, read_access(kubeconfig, folder))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
