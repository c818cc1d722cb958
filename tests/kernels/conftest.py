"""Runs a module's tests once per instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from windlass_kernels import native, ops


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """The references are many tiny ops: on a busy machine torch's barriers would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    library = native.load().library
    if library is None:
        pytest.skip(f"no native kernels: {native.load().reason}")
    best, threads = library.isa, ops.threads()
    if not library.choose_isa(request.param):
        pytest.skip(f"this processor lacks {request.param}")
    yield request.param
    library.choose_isa(best)
    ops.set_threads(threads)
