"""Fixtures of the end-to-end suite: one real control plane for the whole run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.control_plane import ControlPlane, missing_binaries, running_control_plane

HERE = Path(__file__).parent
Kubectl = Callable[..., str]


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane; skips naming the binaries that cannot be had."""
    built = subprocess.run([HERE / "tools" / "build.sh"], stdout=subprocess.PIPE, text=True, check=True)
    binaries = Path(built.stdout.strip())
    missing = missing_binaries(binaries)
    if missing:
        pytest.skip(f"missing binaries: {', '.join(missing)}; install Go or set KUBEBUILDER_ASSETS")
    with running_control_plane(tmp_path_factory.mktemp("control-plane"), binaries) as plane:
        yield plane
