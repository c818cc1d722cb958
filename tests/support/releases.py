"""An earlier state of this repository, unpacked: its CRDs, its chart and its operator, for tests of upgrades."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("crds", "helm", "operator", "runtime/windlass_contract")


@dataclass(frozen=True, slots=True)
class Release:
    """One state of the repository on disk."""

    folder: Path
    revision: str

    @property
    def crds(self) -> tuple[Path, ...]:
        """CRD files."""
        return tuple(path for path in sorted((self.folder / "crds").glob("*.yaml")) if path.stem != "kustomization")

    @property
    def chart(self) -> Path:
        """The operator's chart."""
        return self.folder / "helm" / "windlass"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Python takes this state's packages."""
        return {"PYTHONPATH": f"{self.folder / 'operator'}{os.pathsep}{self.folder / 'runtime'}"}


def previous_revision() -> str | None:
    """The commit to upgrade from: WINDLASS_PREVIOUS_RELEASE, else the parent of HEAD; None without history."""
    wanted = os.environ.get("WINDLASS_PREVIOUS_RELEASE", "HEAD~1")
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    return found.stdout.strip() or None


def unpack(revision: str, folder: Path) -> Release:
    """Write one commit's CRDs, chart and operator below `folder`, and check that Python would run that operator."""
    archive = subprocess.run(["git", "archive", revision, *PARTS], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    release = Release(folder, revision)
    where = [
        sys.executable,
        "-c",
        "import windlass_operator, windlass_contract as c; print(windlass_operator.__file__)",
    ]
    found = subprocess.run(where, env={**os.environ, **release.environment}, text=True, capture_output=True, check=True)
    assert found.stdout.startswith(str(folder)), f"Python takes {found.stdout.strip()} instead of {folder}"
    return release


def current() -> Release:
    """The state under test."""
    return Release(ROOT, "the working tree")
