"""The thread pool seen through the ops: several callers, more threads than cores, forked children."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from windlass_kernels import native, ops

pytestmark = pytest.mark.skipif(native.load().library is None, reason="needs the native kernels")


@pytest.fixture(autouse=True)
def keep_thread_count() -> Iterator[None]:
    before = ops.threads()
    yield
    ops.set_threads(before)


def test_thread_counts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be 1 or more, found 0"):
        ops.set_threads(0)


def test_the_thread_count_reads_back() -> None:
    ops.set_threads(3)

    assert ops.threads() == 3


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_calls_from_several_threads_at_once_all_come_out_right(threads: int) -> None:
    ops.set_threads(threads)
    weight = torch.randn(500, 300)
    inputs = [torch.randn(1 + i % 11, 300) for i in range(200)]
    expected = [ops.linear(x, weight) for x in inputs]

    with ThreadPoolExecutor(4) as executor:
        results = list(executor.map(lambda x: ops.linear(x, weight), inputs))

    assert all(map(torch.equal, results, expected))


def test_thousands_of_small_regions_in_a_row_lose_no_chunk() -> None:
    ops.set_threads(4)
    x, weight = torch.ones(1, 64), torch.ones(4096, 64)
    out = torch.empty(1, 4096)

    for _ in range(3000):
        out.zero_()
        ops.linear(x, weight, out=out)
        assert out.min() == out.max() == 64


def test_a_forked_child_computes_with_a_pool_of_its_own() -> None:
    ops.set_threads(2)
    x, weight = torch.ones(2, 256), torch.ones(2000, 256)
    ops.linear(x, weight)

    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs must not outlive the test
        out = torch.empty(2, 2000)
        ops.linear(x, weight, out=out)
        os._exit(0 if bool((out == 256).all()) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
