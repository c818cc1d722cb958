"""Speed of the device kernels on one GPU: share of its copy bandwidth, and beside torch's own ops. For `gpu_check.py`.

Arrays are copied until together they exceed the second-level cache several times, and launches go through them in turn
within one graph, so each launch reads device memory. Times are medians over replays of a graph.
Stand-alone, to check the script itself on a machine without a GPU (its figures mean nothing there):

    python benchmarks/gpu_kernels.py --emulate
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from windlass_kernels.cuda import compile as cuda_compile
from windlass_kernels.cuda import samples
from windlass_kernels.cuda.cuda_core import CudaRuntime
from windlass_kernels.cuda.device import DeviceArray, Launcher, to_device
from windlass_kernels.cuda.emulate import EmulatedRuntime
from windlass_kernels.cuda.schema import bind

SPREAD_BYTES = 512 << 20
"""What the copies of an op's inputs take together, several times the largest second-level cache (50 MB)."""
MOST_COPIES, REPLAYS, WARM_UP = 64, 9, 2
FUSED_ROWS = 8
AIMS = {"gemv_int8": 0.6, "gemv_int4": 0.6, "paged_attention": 0.6}
"""Least share of the copy bandwidth for one sequence."""


@dataclass(frozen=True)
class Shape:
    """A layer: that of a model of 7 to 8 billion parameters, or a tiny one for the emulator."""

    hidden: int
    neurons: int
    heads: int
    kv_heads: int
    width: int
    context: int
    spread_bytes: int


LAYER = Shape(4096, 14336, 32, 8, 128, 8191, SPREAD_BYTES)
TINY = Shape(128, 192, 4, 2, 64, 130, 0)


@dataclass(frozen=True)
class Timing:
    """One row: a kernel, or an op of torch beside it."""

    name: str
    label: str
    seconds: float
    bytes: int

    def share(self, bandwidth: float) -> float:
        return self.bytes / self.seconds / bandwidth


def build_layer(shape: Shape, seed: int) -> list[samples.Sample]:
    """The kernels of a decode step at one and eight tokens, sparse ones at several densities."""
    make, blocks, s = samples.Maker(seed), shape.neurons // 64, shape
    found = []
    for tokens in (1, 8):
        found += [samples.gemv(make, tokens, s.neurons, s.hidden, group) for group in (None, 64)]
        found += [samples.gemv(make, tokens, s.hidden, s.neurons, group) for group in (None, 64)]
    for chosen in (max(1, blocks // 4), blocks // 2, blocks):
        found += [samples.sparse_gate_up(make, 1, s.neurons, s.hidden, chosen, group) for group in (None, 64)]
        found += [samples.sparse_down(make, 1, s.hidden, s.neurons, chosen, group) for group in (None, 64)]
    found.append(samples.gate_predictor(make, 1, s.hidden, 64, blocks, dense_above=blocks))
    found += [
        samples.rms_norm_quantize(make, FUSED_ROWS, s.hidden),
        samples.swiglu_quantize(make, FUSED_ROWS, s.neurons),
    ]
    for rows in (1, 8):
        positions = (s.context,) * rows
        found.append(samples.paged_attention(make, positions, s.heads, s.kv_heads, s.width, pages_per_piece=4))
    pieces = s.context // 64 // 4 + 1
    found.append(samples.attention_merge(make, 1, s.heads, pieces, s.width))
    found.append(samples.kv_quantize(make, 8, s.kv_heads, s.width))
    return found


def measure_sample(launcher: Launcher, sample: samples.Sample, spread_bytes: int) -> Timing:
    """Seconds of a launch. A sparse op counts the bytes of its chosen blocks."""
    arrays = {name: (array.shape, str(array.dtype)) for name, array in sample.inputs.items()}
    call = bind(sample.op, arrays, sample.attributes)
    traffic = sample.op.traffic(call.sizes)
    if "active" in sample.inputs:
        traffic = traffic * int(sample.inputs["count"][0]) // len(sample.inputs["active"])
    copies = [to_device(launcher.runtime, sample.inputs) for _ in range(count_copies(traffic, spread_bytes))]
    outputs = [fresh_outputs(launcher, sample, copy) for copy in copies]

    def launch_all(stream: object) -> None:
        for copy, targets in zip(copies, outputs, strict=True):
            launcher.run(sample.op, copy, sample.attributes, targets, stream)

    launch_all(launcher.runtime.stream)  # compiles and loads, which no capture allows
    replay = launcher.runtime.capture(launch_all)
    return Timing(sample.op.name, sample.label, measure_replays(launcher, replay) / len(copies), traffic)


def count_copies(traffic: int, spread_bytes: int) -> int:
    return max(1, min(MOST_COPIES, -(-spread_bytes // max(1, traffic))))


def fresh_outputs(
    launcher: Launcher, sample: samples.Sample, inputs: Mapping[str, DeviceArray]
) -> dict[str, DeviceArray]:
    """Memory for the results, so that a captured launch allocates none."""
    results = launcher.run(sample.op, inputs, sample.attributes)
    return {name: array for name, array in results.items() if name not in sample.op.in_place}


def measure_replays(launcher: Launcher, replay: Callable[[], None]) -> float:
    runtime, times = launcher.runtime, []
    for _ in range(WARM_UP + REPLAYS):
        first = runtime.record(runtime.stream)
        replay()
        times.append(runtime.elapsed_ms(first, runtime.record(runtime.stream)) / 1e3)
    runtime.synchronize()
    return statistics.median(times[WARM_UP:])


def time_torch(work: Callable[[int], object], copies: int) -> float:
    """Seconds of one call of `work(copy)`, from a graph over all copies."""
    for copy in range(copies):
        work(copy)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            work(copy)
    times = []
    for _ in range(WARM_UP + REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times[WARM_UP:]) / copies


def measure_copy_bandwidth() -> float:
    """Bytes a second, read and written, of copies within the device: the ceiling of everything here."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / time_torch(lambda _: target.copy_(source), 1)


def measure_torch(shape: Shape) -> list[Timing]:
    """What torch has for the same work: float16 products, attention over float16 keys, an unfused chain."""
    found, options = [], {"dtype": torch.float16, "device": "cuda"}
    for tokens in (1, 8):
        for rows, columns in ((shape.neurons, shape.hidden), (shape.hidden, shape.neurons)):
            size = 2 * rows * columns
            copies = count_copies(size, shape.spread_bytes)
            weights, x = torch.randn(copies, rows, columns, **options), torch.randn(tokens, columns, **options)
            seconds = time_torch(lambda copy, x=x, w=weights: x @ w[copy].T, copies)
            found.append(Timing("torch float16 product", f"{rows} x {columns}, {tokens} tokens", seconds, size))
    for rows in (1, 8):
        keys = torch.randn(2, rows, shape.kv_heads, shape.context + 1, shape.width, **options)
        query = torch.randn(rows, shape.heads, 1, shape.width, **options)
        copies = count_copies(keys.nbytes, shape.spread_bytes)
        many = [keys.clone() for _ in range(copies)]

        def attend(copy: int, query: torch.Tensor = query, many: list[torch.Tensor] = many) -> torch.Tensor:
            keys, values = many[copy]
            return torch.nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

        seconds = time_torch(attend, copies)
        found.append(Timing("torch float16 attention", f"{rows} x {shape.context + 1} tokens", seconds, keys.nbytes))
    for name, columns in (("norm", shape.hidden), ("SwiGLU", shape.neurons)):
        work = unfused_norm(columns) if name == "norm" else unfused_swiglu(columns)
        seconds = time_torch(work, 1)
        found.append(
            Timing(f"torch {name}, then codes", f"{FUSED_ROWS} x {columns}", seconds, 7 * FUSED_ROWS * columns)
        )
    return found


def quantize_with_torch(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = values.float().abs().amax(-1, keepdim=True) / 127
    return (values / scales).round().to(torch.int8), scales


def unfused_norm(columns: int) -> Callable[[int], object]:
    residual, delta = torch.randn(2, FUSED_ROWS, columns, dtype=torch.float16, device="cuda")
    gain = torch.randn(columns, dtype=torch.float16, device="cuda")
    return lambda _: quantize_with_torch(torch.nn.functional.rms_norm(residual + delta, (columns,), gain, 1e-5))


def unfused_swiglu(columns: int) -> Callable[[int], object]:
    gate, up = torch.randn(2, FUSED_ROWS, columns, dtype=torch.float16, device="cuda")
    return lambda _: quantize_with_torch(torch.nn.functional.silu(gate) * up)


def render(timings: list[Timing], bandwidth: float) -> str:
    """A Markdown table, and for each aim whether it is met."""
    lines = ["| op | with | microseconds | MB | share of copy bandwidth |", "|---|---|---|---|---|"]
    for timing in timings:
        share = f"{timing.share(bandwidth):.0%}"
        cells = (timing.name, timing.label, f"{timing.seconds * 1e6:.1f}", f"{timing.bytes / 1e6:.1f}", share)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Copy bandwidth, read and written: {bandwidth / 1e9:.0f} GB/s."]
    for name, aim in AIMS.items():
        first = next(timing for timing in timings if timing.name == name)
        verdict = "met" if first.share(bandwidth) >= aim else "missed"
        lines.append(f"Aim for {name} at one token: {aim:.0%} of it; {first.share(bandwidth):.0%}, {verdict}.")
    return "\n".join(lines)


def measure(launcher: Launcher, shape: Shape, seed: int = 0) -> list[Timing]:
    return [measure_sample(launcher, sample, shape.spread_bytes) for sample in build_layer(shape, seed)]


def report_on_gpu() -> str:
    """All timings of this machine's GPU. Raises DeviceError, CompileError."""
    launcher = Launcher(CudaRuntime(), cuda_compile.compile_unit)
    bandwidth = measure_copy_bandwidth()
    return render([*measure(launcher, LAYER), *measure_torch(LAYER)], bandwidth)


def report_emulated() -> str:
    """The same table from the emulator, whose figures mean nothing: it shows that the script runs."""
    launcher = Launcher(EmulatedRuntime(), lambda _source, _target: b"")
    return render(measure(launcher, TINY), bandwidth=1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulate", action="store_true")
    print(report_emulated() if parser.parse_args().emulate else report_on_gpu())
    return 0


if __name__ == "__main__":
    sys.exit(main())
