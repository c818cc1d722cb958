"""Time the CPU kernels against torch: `python benchmarks/cpu_kernels.py [--seconds S] [--counts M ...]`.

Each line alternates ours and torch's in one loop and reports medians. Weights rotate through enough copies to exceed
the last-level cache, as the layers of a model do. The floor is this machine's streaming-read bandwidth, measured by the
same run with the same threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from windlass_kernels import native, ops, packed, reference

CACHE_BYTES = 160 << 20
"""Copies of a weight add up to this at least: beyond the last-level caches of common servers' shares."""

MODELS = {
    "100M": {"qkv": (1280, 768), "o": (768, 768), "gate_up": (4096, 768), "down": (768, 2048), "head": (32000, 768)},
    "1B": {"qkv": (3072, 2048), "o": (2048, 2048), "gate_up": (16384, 2048), "down": (2048, 8192)},
}


def time_pair(ours: Callable[[int], object], theirs: Callable[[int], object], seconds: float) -> tuple[float, float]:
    """Median seconds of each, alternating; the argument counts the rounds."""
    first, second = time_samples(ours, theirs, seconds)
    return statistics.median(first), statistics.median(second)


def time_samples(
    ours: Callable[[int], object], theirs: Callable[[int], object], seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds of every round of each."""
    samples: tuple[list[float], list[float]] = ([], [])
    for round_ in range(3):
        ours(round_)
        theirs(round_)
    until, round_ = time.perf_counter() + seconds, 0
    while time.perf_counter() < until or round_ < 5:
        for candidate, kept in zip((ours, theirs), samples, strict=True):
            start = time.perf_counter()
            candidate(round_)
            kept.append(time.perf_counter() - start)
        round_ += 1
    return samples


def _rotate(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: list[Tensor], round_: int) -> Tensor:
    return product(x, weights[round_ % len(weights)])


def measure_floor(seconds: float) -> float:
    """Bytes per second of reading 256 MiB: the better of our streaming probe and torch's sum, each a median."""
    block = torch.ones(64 << 20)
    library = native.load().library
    if library is None:
        raise SystemExit(f"nothing to measure: {native.load().reason}")
    read, total = time_pair(lambda _: library.read_all(block.data_ptr(), block.numel()), lambda _: block.sum(), seconds)
    return block.nbytes / min(read, total)


def bench_linear(floor: float, counts: list[int], seconds: float, dtype: torch.dtype) -> None:
    print(f"\nlinear, {dtype}, floor {floor / 1e9:.1f} GB/s")
    print("model weight            M    ours ms   torch ms  speed-up   GB/s floor  GFLOP/s")
    for model, shapes in MODELS.items():
        for name, (n, k) in shapes.items():
            copies = max(1, CACHE_BYTES // (n * k * dtype.itemsize) + 1)
            weights = [torch.randn(n, k).to(dtype) for _ in range(copies)]
            for m in counts:
                x = torch.randn(m, k)
                ours, theirs = time_pair(
                    functools.partial(_rotate, ops.linear, x, weights),
                    functools.partial(_rotate, torch.nn.functional.linear, x.to(dtype), weights),
                    seconds,
                )
                rate, flops = n * k * dtype.itemsize / ours, 2 * m * n * k / ours
                print(
                    f"{model:5} {name:8} {n:6}x{k:<5} {m:4} {ours * 1e3:9.3f} {theirs * 1e3:9.3f} {theirs / ours:8.2f}x"
                    f" {rate / 1e9:7.1f} {rate / floor:5.0%} {flops / 1e9:8.1f}",
                    flush=True,
                )


def build_packed(n: int, k: int, bits: int) -> packed.PackedWeight:
    """Random codes; a product's time does not depend on them."""
    largest = packed.LARGEST_CODE[bits]
    codes = torch.randint(-largest, largest + 1, (n, k)).to(torch.int8)
    return packed.pack(codes, torch.rand(n) if bits == 8 else torch.rand(n, k // 32).half())


def copy_of(weight: packed.PackedWeight) -> packed.PackedWeight:
    return dataclasses.replace(weight, codes=weight.codes.clone(), scales=weight.scales.clone())


def bench_packed(counts: list[int], seconds: float) -> None:
    """Each line alternates a product with a plain read of as many bytes, so that both meet the same machine."""
    library = native.load().library
    assert library is not None
    print("\npacked linear against reading its bytes once: medians, and the best of each")
    print("model weight           bits    M    ours ms  read ms  share of floor  best ms  share  GOP/s")
    block = torch.ones(64 << 20)
    for model, shapes in MODELS.items():
        for (name, (n, k)), bits in itertools.product(shapes.items(), (8, 4)):
            first = build_packed(n, k, bits)
            weights = [first, *(copy_of(first) for _ in range(CACHE_BYTES // first.nbytes))]
            spans = block.numel() * 4 // first.nbytes
            for m in counts:
                x = torch.randn(m, k)
                ours, read = time_samples(
                    lambda round_, x=x, weights=weights: packed.linear(x, weights[round_ % len(weights)]),
                    lambda round_, size=first.nbytes, spans=spans: library.read_all(
                        block.data_ptr() + round_ % spans * size // 64 * 64, size // 4
                    ),
                    seconds,
                )
                middle, floor = statistics.median(ours), statistics.median(read)
                print(
                    f"{model:5} {name:8} {n:6}x{k:<5} {bits:3} {m:4} {middle * 1e3:10.3f} {floor * 1e3:8.3f}"
                    f" {floor / middle:15.0%} {min(ours) * 1e3:8.3f} {min(read) / min(ours):6.0%}"
                    f" {2 * m * n * k / min(ours) / 1e9:6.0f}",
                    flush=True,
                )


CONTEXTS = [(1, 1, 1024), (8, 1, 1024), (1, 1, 8192), (1, 256, 256), (1, 256, 1024), (1, 512, 2048)]
"""(rows, tokens per row that ask, positions per row)"""


def bench_attention(floor: float, seconds: float) -> None:
    print("\nattention, float32 pages, 12 heads on 4, width 64")
    print("rows tokens context    ours ms    sdpa ms  speed-up   GB/s floor")
    for rows, tokens, context in CONTEXTS:
        ours, theirs, read = time_attention(rows, tokens, context, seconds)
        rate = read / ours
        print(
            f"{rows:4} {tokens:6} {context:7} {ours * 1e3:10.3f} {theirs * 1e3:10.3f} {theirs / ours:8.2f}x"
            f" {rate / 1e9:7.1f} {rate / floor:5.0%}",
            flush=True,
        )


def time_attention(rows: int, tokens: int, context: int, seconds: float) -> tuple[float, float, int]:
    """Seconds of ours on pages, of torch's on dense keys and values, and the bytes of one reading of the pages."""
    heads, kv_heads, width = 12, 4, 64
    pages = context // ops.PAGE_TOKENS
    pools = [torch.randn(rows * pages, kv_heads, ops.PAGE_TOKENS, width) for _ in range(2)]
    table = torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
    positions = torch.arange(context - tokens, context, dtype=torch.int32).repeat(rows)
    row_of = torch.arange(rows, dtype=torch.int32).repeat_interleave(tokens)
    query = torch.randn(rows * tokens, heads, width)
    dense = [
        pool.view(rows, pages, kv_heads, -1, width).transpose(1, 2).reshape(rows, kv_heads, context, width)
        for pool in pools
    ]
    asked = query.view(rows, tokens, heads, width).transpose(1, 2).contiguous()
    mask = None if tokens == 1 else torch.arange(context)[None, :] <= positions[:tokens, None]
    ours, theirs = time_pair(
        lambda _: ops.paged_attention(query, pools[0], pools[1], table, row_of, positions, 0.125),
        lambda _: torch.nn.functional.scaled_dot_product_attention(
            asked, dense[0], dense[1], attn_mask=mask, enable_gqa=True
        ),
        seconds,
    )
    return ours, theirs, 2 * pools[0].nbytes


def bench_calls(seconds: float) -> None:
    print("\nsmall ops, one row: microseconds per call, ours and torch's")
    x, weight, gate_up = torch.randn(1, 768), torch.randn(768), torch.randn(1, 4096)
    pairs: dict[str, tuple[Callable[[int], Tensor], Callable[[int], Tensor]]] = {
        "rms_norm 768": (
            lambda _: ops.rms_norm(x, weight, 1e-5),
            lambda _: torch.nn.functional.rms_norm(x, (768,), weight, 1e-5),
        ),
        "silu_mul 2048": (lambda _: ops.silu_mul(gate_up), lambda _: reference.silu_mul(gate_up)),
    }
    for name, (ours, theirs) in pairs.items():
        ours_s, theirs_s = time_pair(ours, theirs, seconds)
        print(f"{name:14} {ours_s * 1e6:8.1f} {theirs_s * 1e6:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="time per line")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 512], help="rows of x")
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 weights as well")
    parser.add_argument("--packed", action="store_true", help="only products with weights of 8 and 4 bits")
    arguments = parser.parse_args()
    print(f"{ops.available().reason}, {ops.threads()} threads; torch {torch.__version__}, {torch.get_num_threads()}")
    floor = measure_floor(2 * arguments.seconds)
    if arguments.packed:
        bench_packed(arguments.counts, arguments.seconds)
        return
    bench_linear(floor, arguments.counts, arguments.seconds, torch.float32)
    if arguments.bfloat16:
        bench_linear(floor, arguments.counts, arguments.seconds, torch.bfloat16)
    bench_attention(floor, arguments.seconds)
    bench_calls(arguments.seconds)


if __name__ == "__main__":
    main()
