"""A real Kubernetes control plane on loopback: etcd and the Kubernetes servers, with kwok in the place of kubelets.

Started in seconds, torn down by process id. The binaries come from KUBEBUILDER_ASSETS or from `make control-plane`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
KWOK_STAGES = Path(__file__).resolve().parents[1] / "e2e" / "kwok-stages.yaml"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


def missing_binaries(folder: Path) -> list[str]:
    """Names that are neither in KUBEBUILDER_ASSETS nor in `folder`."""
    return [name for name in BINARIES if find_binary(name, folder) is None]


def find_binary(name: str, folder: Path) -> Path | None:
    """First of KUBEBUILDER_ASSETS and `folder` that holds an executable of this name."""
    for place in (os.environ.get("KUBEBUILDER_ASSETS", ""), str(folder)):
        found = shutil.which(name, path=place) if place else None
        if found:
            return Path(found)
    return None


@dataclass
class ControlPlane:
    """One running control plane. `url` and `token` give cluster-admin; `kubeconfig` names a file with both."""

    folder: Path
    binaries: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    ports: tuple[int, ...] = field(default_factory=lambda: free_ports(5))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports[2]}"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig.json"

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
        binary = find_binary(name, self.binaries)
        assert binary is not None, f"{name} was there a moment ago"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen([binary, *flags], stdout=log, stderr=log, cwd=self.folder)

    def stop_process(self, name: str) -> None:
        """Stop one binary: SIGTERM, then SIGKILL after STOP_TIMEOUT_S."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            return
        process.kill()
        process.wait(STOP_TIMEOUT_S)

    def restart_api_server(self) -> None:
        """Stop and start the API server; data and tokens stay."""
        self.stop_process("kube-apiserver")
        self.start_process("kube-apiserver", self._api_server_flags())
        self._wait_ready()

    def _write_files(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (self.folder / "service-accounts.key").write_bytes(pem)
        (self.folder / "tokens.csv").write_text(f"{self.token},admin,admin,system:masters\n")
        cluster = {"server": self.url, "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "admin"}}],
            "current-context": "e2e",
        }
        self.kubeconfig.write_text(json.dumps(config))

    def _etcd_flags(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in self.ports[:2])
        urls = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        return ["--data-dir", "etcd", "--log-level", "error", "--unsafe-no-fsync", *urls]

    def _api_server_flags(self) -> list[str]:
        return [
            f"--etcd-servers=http://127.0.0.1:{self.ports[0]}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[2]}",
            "--cert-dir=api-server-certificates",
            "--authorization-mode=RBAC",
            "--token-auth-file=tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=service-accounts.key",
            "--service-account-signing-key-file=service-accounts.key",
            "--service-cluster-ip-range=10.0.0.0/16",
        ]

    def _controller_manager_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--use-service-account-credentials",
            "--service-account-private-key-file=service-accounts.key",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[3]}",
            "--cert-dir=controller-manager-certificates",
        ]

    def _scheduler_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[4]}",
            "--cert-dir=scheduler-certificates",
        ]

    def _kwok_flags(self) -> list[str]:
        flags = [f"--kubeconfig={self.kubeconfig}", "--manage-all-nodes=true", "--node-lease-duration-seconds=40"]
        return [*flags, f"--config={KWOK_STAGES}"]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.processes["kube-apiserver"].poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError):
                request = urllib.request.Request(
                    f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token}"}
                )
                with urllib.request.urlopen(request, context=loopback_tls(), timeout=2):
                    return
            time.sleep(0.1)
        tail = (self.folder / "kube-apiserver.log").read_text(errors="replace")[-2000:]
        raise TimeoutError(f"kube-apiserver is not ready after {START_TIMEOUT_S:.0f} s; its log ends:\n{tail}")


def loopback_tls() -> ssl.SSLContext:
    """The server makes its own certificate at each start and listens on loopback only."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return tuple(item.getsockname()[1] for item in sockets)


@contextlib.contextmanager
def running_control_plane(folder: Path, binaries: Path) -> Iterator[ControlPlane]:
    """A started control plane that is gone when the block ends, however it ends."""
    plane = ControlPlane(folder, binaries)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
