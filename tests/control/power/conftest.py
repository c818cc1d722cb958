from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake_nvml import LIBRARY, VARIABLE, FakeNvml, build_library


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libnvidia-ml.so.1 that needs no GPU."""
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(nvml_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """Two GPUs, reached by this process through the real nvidia-ml-py."""
    ctypes.CDLL(str(nvml_folder / LIBRARY), mode=ctypes.RTLD_GLOBAL)
    node = FakeNvml(tmp_path / "node.bin", ["GPU-a", "GPU-b"])
    monkeypatch.setenv(VARIABLE, str(node.path))
    return node
