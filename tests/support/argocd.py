"""Argo CD for tests: its scripts in a Lua as bare as the one it gives them, and its controller on a control plane."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lupa import lua51

from support.control_plane import free_ports
from support.kube_client import KubeClient, eventually
from support.patience import stretched

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tests" / "e2e" / "tools" / "argocd"
EXAMPLES = ROOT / "examples" / "argocd"
CUSTOMIZATIONS = EXAMPLES / "resource_customizations"
"""Scripts by API group and kind, laid out as Argo CD lays out its own."""
PLACEHOLDER = "https://git.example.com/REPLACE-ME/fleet.git"
NAMESPACE = "argocd"
RESYNC_S = 5
"""Seconds between two comparisons of an Application with Git; minutes in production."""
START_TIMEOUT_S = 60.0
FORBIDDEN_LIBRARIES = ("string", "math", "io", "os", "debug", "coroutine", "package", "require", "python")


def run_script(path: Path, obj: dict[str, Any]) -> Any:
    """Run one script on `obj` with the libraries that Argo CD grants (base and table) and return what it returns."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
    lua.execute('getmetatable("").__index = nil')
    lua_globals = lua.globals()
    lua_globals.obj = _to_lua(lua, obj)
    for name in FORBIDDEN_LIBRARIES:
        lua_globals[name] = None
    return _from_lua(lua.execute(path.read_text()))


def read_fixture(path: Path) -> dict[str, Any]:
    """One object of a testdata folder."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def _to_lua(lua: lua51.LuaRuntime, value: Any) -> Any:
    """Numbers become doubles and nulls disappear, as they do where Argo CD hands an object to Lua."""
    if isinstance(value, dict):
        return lua.table_from({key: _to_lua(lua, item) for key, item in value.items() if item is not None})
    if isinstance(value, list):
        return lua.table_from([_to_lua(lua, item) for item in value])
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _from_lua(value: Any) -> Any:
    if lua51.lua_type(value) != "table":
        return int(value) if isinstance(value, float) and value.is_integer() else value
    keys = list(value.keys())
    if keys and keys == list(range(1, len(keys) + 1)):
        return [_from_lua(value[key]) for key in keys]
    return {key: _from_lua(value[key]) for key in keys}


@dataclass
class ArgoCD:
    """Argo CD's application controller and repo server on loopback, with a Redis, against one control plane.

    What is missing is its API server: tests read and write Applications as objects.
    """

    folder: Path
    binaries: Binaries
    kubeconfig: Path
    ports: tuple[int, ...] = field(default_factory=lambda: free_ports(4))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def install(self, kube: KubeClient) -> None:
        """What Argo CD's own manifests bring: kinds, namespace and settings, those of our how-to too."""
        crds = [yaml.safe_load(path.read_text()) for path in (self.binaries.argocd.parent / "crds").glob("*.yaml")]
        for name in [kube.apply(crd)["metadata"]["name"] for crd in crds]:
            eventually(lambda name=name: _is_established(kube, name), bool, timeout_s=START_TIMEOUT_S)
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        metadata = {"namespace": NAMESPACE, "labels": {"app.kubernetes.io/part-of": "argocd"}}
        kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {**metadata, "name": "argocd-secret"}})
        kube.apply(yaml.safe_load((EXAMPLES / "install" / "argocd-cm.yaml").read_text()))

    def start(self) -> None:
        """Start the processes; returns when Redis and the repo server answer."""
        redis, repo_server, *metrics = (str(port) for port in self.ports)
        cache = ["--redis", f"127.0.0.1:{redis}"]
        listen = ["--disable-tls", "--address", "127.0.0.1", "--port", repo_server]
        repo_metrics = ["--metrics-address", "127.0.0.1", "--metrics-port", metrics[0]]
        repository = ["--repo-server", f"127.0.0.1:{repo_server}", "--repo-server-plaintext"]
        access = ["--kubeconfig", str(self.kubeconfig), "--namespace", NAMESPACE]
        pace = ["--app-resync", str(RESYNC_S), "--app-resync-jitter", "0"]
        told = ["--persist-resource-health", "--metrics-port", metrics[1]]
        self._start("redis", [self.binaries.redis, "--port", redis, "--bind", "127.0.0.1", "--save", ""])
        server = [self.binaries.argocd, "argocd-repo-server", "--revision-cache-expiration", f"{RESYNC_S}s"]
        self._start("repo-server", [*server, *cache, *listen, *repo_metrics])
        for port in self.ports[:2]:
            _wait_for_port(port)
        controller = [self.binaries.argocd, "argocd-application-controller"]
        self._start("controller", [*controller, *cache, *repository, *access, *pace, *told])

    def stop(self) -> None:
        """Stop what was started, newest first, each by its own process."""
        for process in reversed(list(self.processes.values())):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.processes.clear()

    def log(self, name: str) -> str:
        """The end of one log."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def _start(self, name: str, command: Sequence[str | Path]) -> None:
        environment = {
            "HOME": str(self.folder),
            "PATH": os.pathsep.join([str(self.binaries.helm.parent), os.environ["PATH"]]),
            "TMPDIR": str(self.folder),
            "KUBECONFIG": str(self.kubeconfig),
            "ARGOCD_FAKE_IN_CLUSTER": "true",  # https://kubernetes.default.svc is what KUBECONFIG names
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_ASK_PASS_SOCK": str(self.folder / "ask-pass.sock"),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=environment)


@dataclass(frozen=True, slots=True)
class Binaries:
    """What Argo CD consists of here."""

    argocd: Path
    redis: Path
    helm: Path


def build_argocd() -> Path | None:
    """The binary, built on the first use; None where there is no Go toolchain to build it with."""
    if shutil.which("go") is None:
        return None
    built = subprocess.run([TOOL / "build.sh"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(built.stdout.strip()) / "argocd"


def find_binaries(helm: Path) -> Binaries | str:
    """The binaries, or what is missing."""
    redis = shutil.which("redis-server")
    if redis is None:
        return "redis-server (Debian's package of that name)"
    if shutil.which("git") is None:
        return "git"
    argocd = build_argocd()
    return "a Go toolchain to be built with" if argocd is None else Binaries(argocd, Path(redis), helm)


@contextlib.contextmanager
def running_argocd(folder: Path, binaries: Binaries, kubeconfig: Path, kube: KubeClient) -> Iterator[ArgoCD]:
    """An installed and started Argo CD whose processes are gone when the block ends."""
    argocd = ArgoCD(folder, binaries, kubeconfig)
    argocd.install(kube)
    try:
        argocd.start()
        yield argocd
    finally:
        argocd.stop()


class GitRepository:
    """A local repository with what the examples' Applications read: charts and samples, under its own address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"file://{folder}"
        for part in ("helm", "examples/argocd", "examples/fleet"):
            shutil.copytree(ROOT / part, folder / part)
        for path in (folder / "examples" / "argocd").rglob("*.yaml"):
            path.write_text(path.read_text().replace(PLACEHOLDER, self.url))
        self._git("init", "--quiet", "--initial-branch", "main")
        self.commit("First state")

    @property
    def revision(self) -> str:
        """Newest commit of the branch."""
        return self._git("rev-parse", "HEAD").strip()

    def read(self, path: str) -> str:
        """A file of the work tree."""
        return (self.folder / path).read_text()

    def write(self, path: str, text: str, subject: str) -> None:
        """Change one file and commit."""
        (self.folder / path).write_text(text)
        self.commit(subject)

    def commit(self, subject: str) -> None:
        """Commit the work tree; returns when the branch has it."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", subject)

    def _git(self, *arguments: str) -> str:
        who = {"NAME": "Fleet", "EMAIL": "fleet@example.com"}
        identity = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "GIT_CONFIG_NOSYSTEM": "1", **identity}
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, check=True, capture_output=True, text=True)
        return done.stdout


def _is_established(kube: KubeClient, name: str) -> bool:
    crd = kube.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) or {}
    conditions = crd.get("status", {}).get("conditions") or ()  # null at first
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + stretched(START_TIMEOUT_S)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port} after {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
