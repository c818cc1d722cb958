"""Compare 8- and 4-bit decoding on a CPU with other engines: same weights, greedy, same threads, one process per run.

    python benchmarks/cpu_quantized.py --peers-python PEERS/bin/python --output build/cpu_quantized.json

The peers live in an environment of their own, since the product never imports them:

    pip install onnxruntime-genai onnx onnx-ir transformers torch safetensors gguf llama-cpp-python

Repeats are interleaved over the engines. The floor of each is one read of its own weights per token at the bandwidth
measured in the same run by the kernels' probe. Engines:

  windlass FP32 / INT8 / INT4   the engine of a replica, below HTTP; without a recipe, so rounded at load
  windlass INT4 everywhere      attention and head in 4 bits too: for speed alone
  llama.cpp Q8_0 / Q4_0         through its C API, requests that run together decoded together
  onnxruntime-genai INT4        its own model builder; requests as one static batch, started when the last has arrived
  transformers                  FP32 `generate`, one request after another
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cpu_decode
from cpu_decode import Arrival, Served, TokenTimes

TOKENIZER: Final = Path(__file__).resolve().parents[1] / "examples" / "models" / "windlass-tiny"
GGUF_FILE: Final = "model-{}.gguf"
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "100M": cpu_decode.SHAPE,
    "1B": cpu_decode.SHAPE
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
# Bits of a weight with its scales: attention, feed-forward, head.
BITS: Final = {
    "windlass FP32": (32.0, 32.0, 32.0),
    "windlass INT8": (8.0, 8.0, 8.0),
    "windlass INT4": (8.0, 4.5, 8.0),
    "windlass INT4 everywhere": (4.5, 4.5, 4.5),
    "llama.cpp Q8_0": (8.5, 8.5, 8.5),
    "llama.cpp Q4_0": (4.5, 4.5, 4.5),
    "onnxruntime-genai INT4": (5.0, 5.0, 5.0),
    "transformers": (32.0, 32.0, 32.0),
}
COLUMNS: Final = (
    "engine",
    "MB a token",
    "decode tok/s",
    "share of floor",
    "TTFT, s",
    "TTFT 1,024, s",
    "8 requests tok/s",
    "peak MB",
    "load s",
)
PEERS: Final = ("llama.cpp Q8_0", "llama.cpp Q4_0", "onnxruntime-genai INT4")


def load_windlass(folder: Path, name: str) -> Served:
    from windlass_contract.launch_spec import Precision
    from windlass_runtime.backends.load import load_backend
    from windlass_runtime.quant.formats import PRESETS, Format, Part

    if name == "windlass INT4 everywhere":
        PRESETS["INT4"].formats.update({Part.ATTENTION: Format.INT4, Part.HEAD: Format.INT4})
    precision = Precision(name.split()[1])
    return cpu_decode.Windlass(folder, load_backend(folder, precision=precision, max_running_requests=8))


class LlamaCpp:
    """llama.cpp's C API; a request joins the running ones as soon as it has arrived."""

    def __init__(self, folder: Path, name: str) -> None:
        import llama_cpp

        self._c = llama_cpp
        llama_cpp.llama_backend_init()
        path = str(folder / GGUF_FILE.format(name.split()[1])).encode()
        self._model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16384, 2048, 512, 8
        params.n_threads = params.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp: no context")

    def serve(self, trace: list[Arrival], new_tokens: int) -> TokenTimes:
        memory = self._c.llama_get_memory(self._context)
        self._c.llama_memory_clear(memory, True)
        begin, waiting = time.perf_counter(), list(enumerate(trace))
        times: TokenTimes = [[] for _ in trace]
        last: dict[int, tuple[int, int]] = {}
        while waiting or last:
            if not last:
                cpu_decode._wait_until(begin + waiting[0][1].after_s)
            while waiting and time.perf_counter() - begin >= waiting[0][1].after_s:
                index, arrival = waiting.pop(0)
                (token,) = self._decode(
                    [(t, at, index, at == len(arrival.prompt) - 1) for at, t in enumerate(arrival.prompt)]
                )
                times[index].append(time.perf_counter() - begin)
                last[index] = token, len(arrival.prompt)
            order = list(last)
            tokens = self._decode([(last[index][0], last[index][1], index, True) for index in order])
            now = time.perf_counter() - begin
            for index, token in zip(order, tokens, strict=True):
                times[index].append(now)
                last[index] = token, last[index][1] + 1
                if len(times[index]) >= new_tokens:
                    del last[index]
        return times

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of token, position, sequence, and whether its next token is wanted."""
        import numpy as np

        batch = self._c.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        if self._c.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp: decode failed")
        found = []
        for at, row in enumerate(rows):
            if row[3]:
                logits = self._c.llama_get_logits_ith(self._context, at)
                found.append(int(np.ctypeslib.as_array(logits, (cpu_decode.VOCABULARY,)).argmax()))
        self._c.llama_batch_free(batch)
        return found


class OnnxRuntime:
    """onnxruntime-genai on a static batch."""

    def __init__(self, folder: Path, _: str) -> None:
        import onnxruntime_genai

        self._og = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(folder / "onnx-int4"))

    def serve(self, trace: list[Arrival], new_tokens: int) -> TokenTimes:
        import numpy as np

        begin = time.perf_counter()
        cpu_decode._wait_until(begin + trace[-1].after_s)
        length = len(trace[0].prompt)
        params = self._og.GeneratorParams(self._model)
        total = length + new_tokens
        params.set_search_options(batch_size=len(trace), max_length=total, min_length=total, do_sample=False)
        generator, stamps = self._og.Generator(self._model, params), []
        generator.append_tokens(np.array([arrival.prompt for arrival in trace], np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            stamps.append(time.perf_counter() - begin)
        return [list(stamps) for _ in trace]


def load_engine(folder: Path, name: str) -> Served:
    if name.startswith("windlass"):
        return load_windlass(folder, name)
    if name == "transformers":
        return cpu_decode.Generate(folder)
    kinds: dict[str, Callable[[Path, str], Served]] = {"llama.cpp": LlamaCpp, "onnxruntime-genai": OnnxRuntime}
    return kinds[name.split()[0]](folder, name)


def convert(kind: str, folder: Path) -> None:
    """Write the weights in `folder` for a peer; runs in the peers' environment."""
    if kind == "onnx":
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
        places = ["-i", str(folder), "-o", str(folder / "onnx-int4"), "-c", str(folder / "cache")]
        subprocess.run([*builder, *places, "--extra_options", "int4_block_size=32"], check=True)
        return
    write_gguf(folder, kind)


def write_gguf(folder: Path, kind: str) -> None:
    """The same weights as llama.cpp's Q8_0 or Q4_0; rotary pairs become neighbours, as its converter does it."""
    import gguf
    import safetensors.numpy

    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    quantized = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(folder / GGUF_FILE.format(kind), "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in tensors.items():
        values = tensor
        if "q_proj" in name or "k_proj" in name:
            count = heads if "q_proj" in name else kv_heads
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        stored = names.get_name(name.removesuffix(".weight")) + ".weight"
        if values.ndim == 1:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bytes_per_token(shape: dict[str, Any], name: str) -> float:
    """Weights read for one token at batch 1: layers and head."""
    attention_bits, feed_forward_bits, head_bits = BITS[name]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    key_value = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    attention, feed_forward = hidden * (2 * hidden + 2 * key_value), 3 * hidden * inner
    layers = shape["num_hidden_layers"] * (attention * attention_bits + feed_forward * feed_forward_bits)
    return (layers + shape["vocab_size"] * hidden * head_bits) / 8


def measure_bandwidth(threads: int) -> float:
    """Bytes per second of the kernels' streaming probe over 256 MB, best of several passes."""
    import torch

    from windlass_kernels import native, ops

    library = native.load().library
    if library is None:
        return cpu_decode.measure_bandwidth(threads)
    ops.set_threads(threads)
    data = torch.ones(64 << 20)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        library.read_all(data.data_ptr(), data.numel())
        seconds.append(time.perf_counter() - started)
    return data.nbytes / min(seconds)


def run_script(arguments: argparse.Namespace, name: str, folder: Path, *more: str) -> tuple[str, str]:
    """This script again, in the environment that `name` lives in: its output, or nothing and why it failed."""
    peer = name in PEERS
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    if peer and arguments.llama_library:
        environment["LLAMA_CPP_LIB_PATH"] = str(arguments.llama_library)
    command = [str(arguments.peers_python) if peer else sys.executable, __file__, "--folder", str(folder), *more]
    for option in ("threads", "prompt_tokens", "new_tokens"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    return cpu_decode.run_apart(command, environment, arguments.timeout_s)


def prepare(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Weights in every format that is asked for; the peers that failed, and why."""
    shape = SHAPES[arguments.model]
    cpu_decode.write_model(folder, shape)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # a model builder wants some; no text is ever encoded
        shutil.copy(TOKENIZER / name, folder)
    failures: dict[str, str] = {}
    for name in arguments.engines:
        if name in PEERS:
            kind = "onnx" if name.startswith("onnx") else name.split()[1]
            _, failure = run_script(arguments, name, folder, "--convert", kind)
            if failure:
                failures[name] = failure
    return failures


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.engines}
    bandwidths, loads = [], []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder_name:
        folder = Path(folder_name)
        failures = prepare(arguments, folder)
        for repeat in range(arguments.repeats):
            bandwidths.append(measure_bandwidth(arguments.threads))
            loads.append(os.getloadavg()[0])
            for name in arguments.engines:
                if name in failures:
                    continue
                outcome = cpu_decode.read_figures(run_script(arguments, name, folder, "--worker", name))
                print(f"repeat {repeat + 1}: {name}: {outcome}", file=sys.stderr, flush=True)
                if isinstance(outcome, str):
                    failures[name] = outcome
                else:
                    runs[name].append(outcome)
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": arguments.threads},
        "model": arguments.model,
        "read_bytes_per_s": bandwidths,
        "load_averages": loads,
        "bytes_per_token": {name: bytes_per_token(SHAPES[arguments.model], name) for name in arguments.engines},
        "medians": {name: cpu_decode.medians(figures) for name, figures in runs.items() if figures},
        "runs": runs,
        "failures": failures,
    }


def render_table(report: dict[str, Any]) -> str:
    """Medians as Markdown."""
    bandwidth = statistics.median(report["read_bytes_per_s"])
    loads = ", ".join(f"{load:.1f}" for load in report["load_averages"])
    lines = [
        f"{report['model']}: read bandwidth {bandwidth / 1e9:.1f} GB/s; load average before each repeat {loads}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, m in report["medians"].items():
        size = report["bytes_per_token"][name]
        lines.append(
            f"| {name} | {size / 1e6:.0f} | {m['decode_tokens_per_s']:.1f} "
            f"| {m['decode_tokens_per_s'] * size / bandwidth:.0%} | {m['first_token_s']:.2f} "
            f"| {m['first_token_1024_s']:.2f} | {m['concurrent_tokens_per_s']:.0f} "
            f"| {m['peak_mb']:.0f} | {m['load_s']:.1f} |"
        )
    lines += [f"\n{name} did not run: {reason}" for name, reason in report["failures"].items()]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="100M")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--timeout-s", type=float, default=600.0, help="longest run or conversion of one engine")
    parser.add_argument("--engines", nargs="+", choices=list(BITS), default=list(BITS))
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment with the peers")
    parser.add_argument("--llama-library", type=Path, help="folder of libllama.so, for a llama_cpp without its own")
    parser.add_argument(
        "--scratch", type=Path, help="where weights are written; default: the system's temporary folder"
    )
    parser.add_argument("--output", type=Path, help="JSON file with every measurement")
    for hidden in ("--worker", "--convert"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.worker or arguments.convert) and not arguments.peers_python:
        arguments.engines = [name for name in arguments.engines if name not in PEERS]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.convert:
        convert(arguments.convert, arguments.folder)
        return
    if arguments.worker:
        load = lambda folder: load_engine(folder, arguments.worker)  # noqa: E731
        figures = cpu_decode.measure(
            load, arguments.folder, arguments.threads, arguments.prompt_tokens, arguments.new_tokens
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
