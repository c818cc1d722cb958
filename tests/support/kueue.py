"""Kueue for tests: its own chart's objects and its controller, against a control plane on loopback.

The controller runs as a process; its webhooks are reached through a Service that is a name for loopback. No kubelet
mounts the Secret with its certificate here, so it is copied to where the controller looks.
"""

from __future__ import annotations

import contextlib
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from support.control_plane import free_ports
from support.kube_client import KubeClient, Manifest, eventually
from support.secret_mount import mounted_secret
from support.tools import build_module

API: Final = "kueue.x-k8s.io/v1beta2"
NAMESPACE: Final = "kueue-system"
SERVICE: Final = "kueue-webhook-service"
SECRET: Final = "kueue-webhook-server-cert"
WEBHOOKS: Final = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
START_TIMEOUT_S: Final = 90.0
MODULE: Final = "sigs.k8s.io/kueue"
"""Pinned in tests/e2e/tools/kueue."""


@dataclass
class Kueue:
    """The controller, its objects, and where it is reached."""

    folder: Path
    program: Path
    chart: Path
    helm: Path
    kubeconfig: Path
    kube: KubeClient
    ports: tuple[int, ...] = field(default_factory=lambda: free_ports(2))
    installed: list[Manifest] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    def install(self) -> None:
        """Apply what the chart renders, with its webhooks on this machine. Its own roles are not needed: it runs as
        administrator.
        """
        command = [self.helm, "template", "kueue", self.chart, "--namespace", NAMESPACE]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for manifest in filter(None, yaml.safe_load_all(text)):
            kept = self._adapt(manifest)
            if kept is not None:
                self.kube.apply(kept)
                self.installed.append(kept)

    def start(self) -> None:
        """Start the controller; returns when it is ready and its webhooks answer."""
        config = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self.ports[1]}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"port": self.ports[0], "certDir": str(self.folder / "certificates")},
            "leaderElection": {"leaderElect": False},
            "featureGates": {"VisibilityOnDemand": False},
            "integrations": {"frameworks": ["batch/job", "pod", "deployment"]},
            "internalCertManagement": {"enable": True, "webhookServiceName": SERVICE, "webhookSecretName": SECRET},
        }
        file = self.folder / "kueue.yaml"
        file.write_text(yaml.safe_dump(config))
        with (self.folder / "kueue.log").open("ab") as log:
            command = [self.program, f"--config={file}", f"--kubeconfig={self.kubeconfig}"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        eventually(self._is_ready, bool, timeout_s=START_TIMEOUT_S)

    def stop(self) -> None:
        """Take away what would keep others waiting, then the controller, then the definitions."""
        for kind in ("LocalQueue", "ClusterQueue", "ResourceFlavor"):
            self._remove_all(kind)
        self._remove(*WEBHOOKS)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
        self._remove("CustomResourceDefinition", "Service", "Secret")

    def _adapt(self, manifest: Manifest) -> Manifest | None:
        """The object for this machine; None for what a process needs none of."""
        name = manifest["metadata"]["name"]
        if manifest["kind"] in WEBHOOKS:
            wanted = ("deployment", "pod", "clusterqueue", "localqueue", "resourceflavor", "workload", "cohort")
            hooks = [one for one in manifest["webhooks"] if one["name"][1:].partition(".")[0] in wanted]
            for hook in hooks:
                hook["clientConfig"]["service"]["port"] = self.ports[0]
            return {**manifest, "webhooks": hooks}
        if manifest["kind"] == "CustomResourceDefinition":
            service: Any = ((manifest["spec"].get("conversion") or {}).get("webhook") or {}).get("clientConfig")
            if service:
                service["service"]["port"] = self.ports[0]
            return manifest
        if manifest["kind"] == "Service" and name == SERVICE:
            spec = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": self.ports[0]}]}
            return {**manifest, "spec": spec}
        return manifest if (manifest["kind"], name) == ("Secret", SECRET) else None

    def _is_ready(self) -> bool:
        assert self._process is not None
        log = self.folder / "kueue.log"
        assert self._process.poll() is None, f"Kueue has ended; its log:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.ports[1]}/readyz", timeout=2).close()
            return True
        return False

    def _remove(self, *kinds: str) -> None:
        for manifest in reversed(self.installed):
            metadata = manifest["metadata"]
            if manifest["kind"] in kinds:
                namespace = metadata.get("namespace", "")
                self.kube.delete(manifest["apiVersion"], manifest["kind"], metadata["name"], namespace)

    def _remove_all(self, kind: str) -> None:
        for found in self.kube.list(API, kind):
            self.kube.delete(API, kind, found["metadata"]["name"], found["metadata"].get("namespace", ""))
        eventually(lambda: self.kube.list(API, kind), lambda left: not left, timeout_s=60)


@contextlib.contextmanager
def running_kueue(folder: Path, helm: Path, kubeconfig: Path, kube: KubeClient) -> Iterator[Kueue]:
    """A started Kueue whose objects and process are gone when the block ends."""
    programs, source = build_module("kueue", MODULE, kueue=f"{MODULE}/cmd/kueue")
    kueue = Kueue(folder, programs / "kueue", source / "charts" / "kueue", helm, kubeconfig, kube)
    with mounted_secret(kube, NAMESPACE, SECRET, folder / "certificates"):
        try:
            kueue.install()
            kueue.start()
            yield kueue
        finally:
            kueue.stop()
