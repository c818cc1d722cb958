"""Where the binaries of the end-to-end tests are: offered by the machine, or built by `make control-plane`."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / "e2e" / "tools"
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
"""Binaries that must be of the minor asked for."""
OTHERS = ("etcd", "kwok", "helm", "helm-3")


@dataclass(frozen=True, slots=True)
class Toolset:
    """Everything for one Kubernetes minor."""

    minor: str
    """Such as `1.37`."""
    folders: tuple[Path, ...]
    """Caches of `build.sh`; may lack what the machine itself offers."""

    def find(self, name: str) -> Path | None:
        """The binary: of KUBEBUILDER_ASSETS, PATH, or built; a Kubernetes binary only of this minor."""
        for place in (os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ.get("PATH", "")):
            found = shutil.which(name, path=place) if place else None
            if found and (name not in KUBERNETES or _is_of_minor(found, self.minor)):
                return Path(found)
        built = shutil.which(name, path=os.pathsep.join(str(folder) for folder in self.folders))
        return Path(built) if built else None

    def require(self, name: str) -> Path:
        """The binary. Raises FileNotFoundError."""
        found = self.find(name)
        if found is None:
            raise FileNotFoundError(f"{name} for Kubernetes {self.minor}: run `make control-plane`")
        return found

    @property
    def missing(self) -> tuple[str, ...]:
        """Names that cannot be had."""
        return tuple(name for name in (*OTHERS, *KUBERNETES) if self.find(name) is None)


def known_minors() -> tuple[str, ...]:
    """Kubernetes minors with pins, newest first."""
    minors = [path.name.removeprefix("kubernetes-") for path in TOOLS.glob("kubernetes-*")]
    return tuple(sorted(minors, key=lambda minor: [int(part) for part in minor.split(".")], reverse=True))


@cache
def toolset(minor: str) -> Toolset:
    """Build what is missing and return the set; minutes on a cold cache, with progress on stderr."""
    built = subprocess.run([TOOLS / "build.sh", minor], stdout=subprocess.PIPE, text=True, check=True)
    _, _, folders = built.stdout.strip().splitlines()[-1].partition(" ")
    return Toolset(minor, tuple(Path(folder) for folder in folders.split(":")))


@cache
def build_module(folder: str, module: str, **programs: str) -> tuple[Path, Path]:
    """Build programs (name = package) of the module that tools/FOLDER pins; minutes on a cold cache. Returns the folder
    of the programs and that of the module's source. Raises FileNotFoundError without Go, CalledProcessError when it
    cannot be built.
    """
    if not go_is_present():
        raise FileNotFoundError(f"a Go toolchain, which builds {module}")
    asked = [f"{name}={package}" for name, package in programs.items()]
    command = [TOOLS / "module.sh", folder, module, *asked]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return Path(built[0]), Path(built[1])


@cache
def module_source(folder: str, module: str) -> Path:
    """The source of the module that tools/FOLDER pins. Raises CalledProcessError when it cannot be had."""
    command = ["go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module]
    subprocess.run(["go", "mod", "download", module], cwd=TOOLS / folder, check=True, capture_output=True)
    found = subprocess.run(command, cwd=TOOLS / folder, stdout=subprocess.PIPE, text=True, check=True)
    return Path(found.stdout.strip())


def go_is_present() -> bool:
    """Whether missing binaries could have been built: then nothing may be skipped."""
    return shutil.which("go") is not None


@cache
def _is_of_minor(binary: str, minor: str) -> bool:
    for arguments in (["--version"], ["version", "--client"]):
        shown = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False, timeout=20)
        if f"v{minor}." in shown.stdout:
            return True
    return False
