"""Compare decoding on a CPU with transformers: same random weights, greedy, same threads, one process per run.

    python benchmarks/cpu_decode.py --threads 2 --repeats 3 --output build/cpu_decode.json

Prints a Markdown table of medians and writes every measurement as JSON. Repeats are interleaved over the engines, so
that a slow minute of the machine hits all of them. The floor is one read of the weights per token at the read bandwidth
measured in the same run; `--layers 1` checks in a minute that everything runs. Engines:

  windlass                      the engine of a replica, below HTTP
  transformers                  `generate`; requests that arrive together are served one after another
  transformers, static batch    `generate` on all requests at once, started when the last one has arrived
  transformers, continuous      its continuous batching manager
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

VOCABULARY = 32_000
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
"""100 million parameters in what a token reads: layers and head."""
COLUMNS = (
    "engine",
    "decode tok/s",
    "share of floor",
    "TTFT, s",
    "TTFT 1,024, s",
    "8 requests tok/s",
    "TTFT median / worst, s",
    "peak MB",
    "load s",
)
CONCURRENT = 8
ARRIVAL_GAP_S = 0.25


@dataclass(frozen=True)
class Arrival:
    """One request of a trace."""

    after_s: float
    prompt: list[int]


TokenTimes = list[list[float]]
"""Per request: when each token came, in seconds after the trace began."""


class Served(Protocol):
    """A loaded engine."""

    def serve(self, trace: list[Arrival], new_tokens: int) -> TokenTimes: ...


class Windlass:
    """The replica's engine on the torch backend."""

    def __init__(self, folder: Path, backend: Any = None) -> None:
        """backend  loaded by the caller; None loads the folder as it is stored"""
        from windlass_runtime.backends.load import load_backend
        from windlass_runtime.loop import Engine, EngineLimits
        from windlass_runtime.metrics import RuntimeMetrics

        backend = backend or load_backend(folder, max_running_requests=CONCURRENT)
        self._engine = Engine(backend, None, EngineLimits(), RuntimeMetrics("benchmark"))
        self._engine.start()
        self._served = 0

    def serve(self, trace: list[Arrival], new_tokens: int) -> TokenTimes:
        from windlass_runtime.backends.sampling import SamplingParams
        from windlass_runtime.generation import GenerationRequest, Piece

        times: TokenTimes = [[] for _ in trace]
        open_requests = threading.Semaphore(0)
        begin = time.perf_counter()

        def build_emit(index: int) -> Callable[[Any], None]:
            def emit(event: Any) -> None:
                if not isinstance(event, Piece):
                    raise event
                times[index] += [time.perf_counter() - begin] * len(event.token_ids)
                if event.finish is not None:
                    open_requests.release()

            return emit

        for index, arrival in enumerate(trace):
            _wait_until(begin + arrival.after_s)
            self._served += 1
            self._engine.submit(
                GenerationRequest(
                    f"r{self._served}",
                    tuple(arrival.prompt),
                    SamplingParams(temperature=0.0),
                    max_new_tokens=new_tokens,
                    ignore_eos=True,
                ),
                build_emit(index),
            )
        for _ in trace:
            open_requests.acquire()
        return times


class Generate:
    """transformers' `generate`, one request after another."""

    def __init__(self, folder: Path) -> None:
        import transformers

        auto_model: Any = transformers.AutoModelForCausalLM
        self._model = auto_model.from_pretrained(folder, dtype="float32").eval()
        self._model.generation_config.eos_token_id = None

    def serve(self, trace: list[Arrival], new_tokens: int) -> TokenTimes:
        begin, times = time.perf_counter(), []
        for arrival in trace:
            _wait_until(begin + arrival.after_s)
            times += self._generate([arrival.prompt], new_tokens, begin)
        return times

    def _generate(self, prompts: list[list[int]], new_tokens: int, begin: float) -> TokenTimes:
        import torch

        stamps = _Stamps(begin)
        inputs = torch.tensor(prompts)
        with torch.inference_mode():
            self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=0,
                streamer=stamps,
            )
        return [stamps.times[1:] for _ in prompts]  # the first stamp is the prompt itself


class GenerateBatch(Generate):
    """transformers' `generate` on a static batch."""

    def serve(self, trace: list[Arrival], new_tokens: int) -> TokenTimes:
        begin = time.perf_counter()
        _wait_until(begin + trace[-1].after_s)
        return self._generate([arrival.prompt for arrival in trace], new_tokens, begin)


class Continuous:
    """transformers' continuous batching."""

    def __init__(self, folder: Path) -> None:
        import transformers

        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        model.eval()
        build_settings: Any = transformers.GenerationConfig
        settings = build_settings(do_sample=False, max_new_tokens=128, eos_token_id=-1, pad_token_id=0)
        self._manager = model.init_continuous_batching(generation_config=settings)
        self._manager.start()
        self._served = 0

    def serve(self, trace: list[Arrival], new_tokens: int) -> TokenTimes:
        begin, waiting = time.perf_counter(), list(enumerate(trace))
        counts: dict[str, int] = {}
        times: TokenTimes = [[] for _ in trace]
        places: dict[str, int] = {}
        while waiting or len(counts) < len(trace) or min(counts.values()) < new_tokens:
            while waiting and time.perf_counter() - begin >= waiting[0][1].after_s:
                index, arrival = waiting.pop(0)
                self._served += 1
                name = f"r{self._served}"
                places[name], counts[name] = index, 0
                self._manager.add_request(arrival.prompt, request_id=name, max_new_tokens=new_tokens, streaming=True)
            result = self._manager.get_result(timeout=0.005)
            if result is not None and result.request_id in places:
                if result.error:
                    raise RuntimeError(result.error)
                now, total = time.perf_counter() - begin, len(result.generated_tokens)
                times[places[result.request_id]] += [now] * (total - counts[result.request_id])
                counts[result.request_id] = total
        return times


class _Stamps:
    """A streamer that keeps the time of each call."""

    def __init__(self, begin: float) -> None:
        self._begin = begin
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter() - self._begin)

    def end(self) -> None:
        """Nothing to flush."""


ENGINES: dict[str, Callable[[Path], Served]] = {
    "windlass": Windlass,
    "transformers": Generate,
    "transformers, static batch": GenerateBatch,
    "transformers, continuous": Continuous,
}


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def measure(
    load: Callable[[Path], Served], folder: Path, threads: int, prompt_tokens: int, new_tokens: int
) -> dict[str, float]:
    """Everything about one engine in this process, after a warm-up."""
    import torch

    torch.set_num_threads(threads)
    rng = random.Random(1)

    def draw(length: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(length)]

    started = time.perf_counter()
    served = load(folder)
    load_s = time.perf_counter() - started
    served.serve([Arrival(0.0, draw(16))], 4)
    one = served.serve([Arrival(0.0, draw(prompt_tokens))], new_tokens)[0]
    long = served.serve([Arrival(0.0, draw(1024))], 2)[0]
    trace = [Arrival(index * ARRIVAL_GAP_S, draw(prompt_tokens)) for index in range(CONCURRENT)]
    many = served.serve(trace, new_tokens)
    waits = [times[0] - arrival.after_s for times, arrival in zip(many, trace, strict=True)]
    return {
        "load_s": load_s,
        "decode_tokens_per_s": (len(one) - 1) / (one[-1] - one[0]),
        "first_token_s": one[0],
        "first_token_1024_s": long[0],
        "concurrent_tokens_per_s": sum(map(len, many)) / max(times[-1] for times in many),
        "concurrent_first_token_median_s": statistics.median(waits),
        "concurrent_first_token_worst_s": max(waits),
        "peak_mb": _peak_bytes() / 1e6,
    }


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status: expected VmHWM, found none")


def measure_bandwidth(threads: int) -> float:
    """Bytes per second of reading 400 MB, best of several passes."""
    import torch

    torch.set_num_threads(threads)
    data = torch.ones(100_000_000)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - started)
    return data.nbytes / min(seconds)


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """Random weights in the Hugging Face format; the same bytes every time."""
    import safetensors.torch
    import torch

    from windlass_runtime.checkpoint.config import read_spec
    from windlass_runtime.checkpoint.layout import expected_tensors

    (folder / "config.json").write_text(json.dumps(shape))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
        for name, shape in expected_tensors(read_spec(folder)).items()
    }
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def bytes_per_token(layers: int) -> int:
    """Weights read for one token at batch 1: all but the embedding, of which one row is read."""
    size = {key: value for key, value in SHAPE.items() if isinstance(value, int)}
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    key_value = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
    layer = hidden * (2 * hidden + 2 * key_value) + 3 * hidden * inner
    return 4 * (layers * layer + VOCABULARY * hidden)


def run_worker(arguments: argparse.Namespace, engine: str, folder: Path) -> dict[str, float] | str:
    """One engine in a process of its own: its figures, or why it could not run."""
    command = [sys.executable, __file__, "--worker", engine, "--folder", str(folder)]
    for name in ("threads", "prompt_tokens", "new_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    return read_figures(run_apart(command, environment, arguments.timeout_s))


def run_apart(command: list[str], environment: Mapping[str, str], timeout_s: float) -> tuple[str, str]:
    """Run a process to its end: its output, or nothing and why it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return "", f"longer than {timeout_s:.0f} s"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["no message"])[-1]
    return done.stdout, ""


def read_figures(outcome: tuple[str, str]) -> dict[str, float] | str:
    """Figures on the last line of what `run_apart` returned, or why there are none."""
    output, failure = outcome
    if failure:
        return failure
    figures: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return figures


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in arguments.engines}
    failures: dict[str, str] = {}
    bandwidths = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, SHAPE | {"num_hidden_layers": arguments.layers})
        for repeat in range(arguments.repeats):
            bandwidths.append(measure_bandwidth(arguments.threads))
            for engine in arguments.engines:
                outcome = run_worker(arguments, engine, folder)
                print(f"repeat {repeat + 1}: {engine}: {outcome}", file=sys.stderr)
                if isinstance(outcome, str):
                    failures[engine] = outcome
                else:
                    runs[engine].append(outcome)
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": arguments.threads},
        "trace": {
            "layers": arguments.layers,
            "prompt_tokens": arguments.prompt_tokens,
            "new_tokens": arguments.new_tokens,
            "concurrent": CONCURRENT,
            "arrival_gap_s": ARRIVAL_GAP_S,
        },
        "read_bytes_per_s": statistics.median(bandwidths),
        "floor_tokens_per_s": statistics.median(bandwidths) / bytes_per_token(arguments.layers),
        "medians": {engine: medians(figures) for engine, figures in runs.items() if figures},
        "runs": runs,
        "failures": failures,
    }


def medians(figures: list[dict[str, float]]) -> dict[str, float]:
    """Median of each figure over the runs."""
    return {key: statistics.median(run[key] for run in figures) for key in figures[0]}


def render_table(report: dict[str, Any]) -> str:
    """Medians as Markdown."""
    floor = report["floor_tokens_per_s"]
    lines = [
        f"Read bandwidth {report['read_bytes_per_s'] / 1e9:.1f} GB/s, floor {floor:.0f} tokens/s at batch 1.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    for engine, m in report["medians"].items():
        lines.append(
            f"| {engine} | {m['decode_tokens_per_s']:.1f} | {m['decode_tokens_per_s'] / floor:.0%} "
            f"| {m['first_token_s']:.2f} | {m['first_token_1024_s']:.2f} | {m['concurrent_tokens_per_s']:.0f} "
            f"| {m['concurrent_first_token_median_s']:.2f} / {m['concurrent_first_token_worst_s']:.2f} "
            f"| {m['peak_mb']:.0f} | {m['load_s']:.1f} |"
        )
    lines += [f"\n{engine} did not run: {reason}" for engine, reason in report["failures"].items()]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--timeout-s", type=float, default=600.0, help="longest run of one engine")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--output", type=Path, help="JSON file with every measurement")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        figures = measure(
            ENGINES[arguments.worker],
            arguments.folder,
            arguments.threads,
            arguments.prompt_tokens,
            arguments.new_tokens,
        )
        print(json.dumps(figures), flush=True)
        os._exit(0)  # engines keep threads that would wait for more work
    report = run_all(arguments)
    print(render_table(report))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
