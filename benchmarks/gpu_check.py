"""Everything that needs a GPU, in one call: numerics, memory checks, speed. Writes one Markdown report.

    PYTHONPATH=operator:runtime:kernels:tests python3 benchmarks/gpu_check.py --report docs/benchmarks/gpu.md

Runs with the machine's own Python and torch. Each part has its own time limit; a part that fails or cannot run is
reported as such and the exit code is 1 if any failed. `--device cpu --layers 1` checks the script itself.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cpu_decode
import gpu_kernels
import torch

from windlass_contract.launch_spec import Device, Precision
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.torch_backend import TorchBackend

ROOT = Path(__file__).resolve().parents[1]
BUDGET_S, PART_TIMEOUT_S, LEAST_PART_S = 450.0, 120.0, 15.0
"""Of the whole check, of a part, and what a part must have left to be worth starting."""
STEPS, WARM_UP_STEPS, CONTEXT = 64, 8, 512
SHAPE_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}


@dataclass(frozen=True)
class Part:
    """One section of the report."""

    title: str
    passed: bool
    text: str


def run_tests(title: str, prefix: list[str], arguments: list[str], deadline_s: float) -> Part:
    """Run pytest, perhaps under another program, and keep the end of what it printed.

    deadline_s  of the whole check, by the monotonic clock
    """
    timeout_s = min(PART_TIMEOUT_S, deadline_s - time.monotonic())
    if timeout_s < LEAST_PART_S:
        return Part(title, False, f"not run: the {BUDGET_S:.0f} s of the check are spent")
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Part(title, False, f"not finished after {timeout_s:.0f} s")
    return Part(title, done.returncode == 0, f"```\n{(done.stdout + done.stderr)[-6000:]}\n```")


def check_numerics(deadline_s: float) -> Part:
    """Logits and greedy tokens against transformers, device kernels against their references."""
    return run_tests("Numerics", [], ["-m", "gpu", "tests/runtime", "tests/kernels"], deadline_s)


def check_memory(title: str, tool: str, arguments: list[str], deadline_s: float) -> Part:
    """Tests under one of compute-sanitizer's tools."""
    title = f"compute-sanitizer {tool}: {title}"
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return Part(title, True, "not run: compute-sanitizer is not on PATH")
    prefix = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    return run_tests(title, prefix, ["-m", "gpu", "-x", *arguments], deadline_s)


def measure_kernels(device: torch.device) -> Part:
    """The device kernels beside torch's own ops; emulated on a CPU, where figures mean nothing."""
    title = "Device kernels"
    if device.type == "cpu":
        return Part(f"{title}, emulated", True, gpu_kernels.report_emulated())
    try:
        return Part(title, True, gpu_kernels.report_on_gpu())
    # One part must not take the others' results with it.
    except Exception:
        return Part(title, False, f"```\n{traceback.format_exc()[-4000:]}\n```")


def check_plans(deadline_s: float) -> Part:
    """Load TensorRT plans and compare them with torch, in a process of its own: a fault in TensorRT ends that alone."""
    title, timeout_s = "TensorRT plans", min(PART_TIMEOUT_S, deadline_s - time.monotonic())
    if timeout_s < LEAST_PART_S:
        return Part(title, False, f"not run: the {BUDGET_S:.0f} s of the check are spent")
    command = [sys.executable, str(ROOT / "benchmarks/gpu_plans.py")]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Part(title, False, f"not finished after {timeout_s:.0f} s")
    return Part(title, done.returncode == 0, done.stdout or f"```\n{done.stderr[-3000:]}\n```")


def measure_read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a plain reduction over 4 GiB (64 MiB on a CPU), the best of ten."""
    source = torch.ones((1 << 30) if device.type == "cuda" else (1 << 24), device=device)
    times = [timed(lambda: source.sum(), device) for _ in range(10)]
    return source.numel() * 4 / min(times)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's queue included."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode_ours(backend: TorchBackend, rows: int, device: torch.device) -> float:
    """Median seconds of a decode step with `rows` sequences after CONTEXT tokens of context."""
    pages = -(-(CONTEXT + STEPS + WARM_UP_STEPS) // backend.info.page_tokens)
    tables = [tuple(range(row * pages, (row + 1) * pages)) for row in range(rows)]
    prompt = tuple(range(1, CONTEXT + 1))
    for row, table in enumerate(tables):
        backend.step(Batch((Row(str(row), prompt, 0, table, wants_logits=True),)))
    times = []
    for index in range(STEPS + WARM_UP_STEPS):
        batch = Batch(tuple(Row(str(row), (7,), CONTEXT + index, table, True) for row, table in enumerate(tables)))
        times.append(timed(lambda batch=batch: backend.step(batch).argmax(-1).tolist(), device))
    return statistics.median(times[WARM_UP_STEPS:])


def decode_transformers(folder: Path, rows: int, device: torch.device) -> float:
    """The same for transformers with its dynamic cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    with torch.inference_mode():
        prompt = torch.arange(1, CONTEXT + 1, device=device).expand(rows, -1)
        cache = model(prompt, use_cache=True).past_key_values
        token = torch.full((rows, 1), 7, device=device)

        def step() -> list[list[int]]:
            chosen: list[list[int]] = model(token, past_key_values=cache).logits.argmax(-1).tolist()
            return chosen

        times = [timed(step, device) for _ in range(STEPS + WARM_UP_STEPS)]
    return statistics.median(times[WARM_UP_STEPS:])


def measure_decode(device: torch.device, layers: int) -> Part:
    """Decode speed of a random 1B Llama in BF16, beside transformers and the floor of one read of the weights."""
    bandwidth = measure_read_bandwidth(device)
    lines = ["| engine | sequences | ms per step | tokens/s | share of floor |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shape = cpu_decode.SHAPE | SHAPE_1B | {"num_hidden_layers": layers, "torch_dtype": "bfloat16"}
        cpu_decode.write_model(folder, shape)
        backend = load_backend(folder, device=Device(device.type), precision=Precision.BF16, max_running_requests=8)
        floor_s = backend.info.weight_bytes / bandwidth
        results = [("windlass", rows, decode_ours(backend, rows, device)) for rows in (1, 8)]
        backend.close()
        results += [("transformers", rows, decode_transformers(folder, rows, device)) for rows in (1, 8)]
    lines += [
        f"| {engine} | {rows} | {seconds * 1e3:.2f} | {rows / seconds:.0f} | {floor_s / seconds:.0%} |"
        for engine, rows, seconds in results
    ]
    note = f"Reads {bandwidth / 1e9:.0f} GB/s; {CONTEXT} tokens of context, medians of {STEPS} steps, {layers} layers."
    return Part("Decode of a random 1B Llama, BF16", True, "\n".join([*lines, "", note]))


def describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return f"{name}; Python {platform.python_version()}, torch {torch.__version__}; {today}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: expected a CUDA device, found none", file=sys.stderr)
        return 1
    device = torch.device(options.device)
    deadline_s = time.monotonic() + BUDGET_S
    parts = [measure_decode(device, options.layers), measure_kernels(device)]
    if device.type == "cuda":
        decoder, kernels = ["tests/runtime/backends", "-k", "llama and bf16"], ["tests/kernels/cuda"]
        parts.append(check_numerics(deadline_s))
        parts.append(check_memory("a decoder", "memcheck", decoder, deadline_s))
        tools = ("memcheck", "racecheck")
        parts += [check_memory("device kernels", tool, kernels, deadline_s) for tool in tools]
        parts.append(check_plans(deadline_s))
    body = "\n\n".join(f"## {part.title}: {'ok' if part.passed else 'FAILED'}\n\n{part.text}" for part in parts)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(f"# GPU check\n\n{describe_machine(device)}\n\n{body}\n")
    print(options.report.read_text())
    return 0 if all(part.passed for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
