"""Compare sparse with dense decoding on this CPU: same weights, same tokens, by density, batch and format.

    python benchmarks/sparse_activation.py --output build/sparse_activation.json --plot build/sparse-speed.svg

The model is random, so which blocks a token wants is random too: a predictor of random weights, with a cut that makes
it want the given share. Tokens of a batch then agree on nothing; those of a trained model agree more, so unions here
are as large as they get. Quality is not measured here: `windlass-runtime train-gate` does, on a trained model.

Dense and sparse steps alternate; a ratio is that of the medians. Density 1 shows what choosing itself costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cpu_decode
import torch

from windlass_contract.launch_spec import Precision
from windlass_kernels import ops, packed
from windlass_kernels.feed_forward import NEURON_BLOCK, BlockSelection, FeedForward
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.torch_backend import TorchBackend
from windlass_runtime.jobs import plots
from windlass_runtime.kv.store import PAGE_TOKENS, PageStore, float_layout
from windlass_runtime.model.decoder import Decoder, Stage
from windlass_runtime.model.kernel_arithmetic import KernelArithmetic
from windlass_runtime.model.sparse_step import SparseLayers
from windlass_runtime.model.weights import LayerWeights, Weights

FEATURES = 32
CONTEXT = 64
"""Tokens in the cache of each sequence when measuring begins."""


def build_selection(hidden: int, neurons: int, density: float, seed: int) -> BlockSelection:
    """Wants blocks at random, a share of `density` on average."""
    generator = torch.Generator().manual_seed(seed)
    blocks = neurons // NEURON_BLOCK
    codes = torch.randint(-127, 128, (FEATURES, hidden), generator=generator).to(torch.int8)
    narrow = packed.pack(codes, torch.full((FEATURES,), 1.0 / 127 / hidden**0.5))
    wide = torch.randn(blocks, FEATURES, generator=generator)
    bias = torch.zeros(blocks)
    sample = torch.randn(512, hidden, generator=generator)
    shares = torch.softmax(packed.linear(sample, narrow).clamp(min=0) @ wide.T + bias, -1)
    cut = -1.0 if density >= 1 else float(shares.quantile(1 - density))
    return BlockSelection(cut, torch.ones(neurons), narrow, wide, bias)


def build_sparse(backend: TorchBackend, density: float) -> TorchBackend:
    """The same model with every layer but the first and the last sparse; weights are shared."""
    decoder = backend._decoder
    assert decoder is not None
    spec, last = decoder.spec, decoder.spec.layer_count - 1

    def change(index: int, layer: LayerWeights) -> LayerWeights:
        if index in (0, last):
            return layer
        selection = build_selection(spec.hidden_size, spec.feed_forward_size, density, index)
        return dataclasses.replace(layer, feed_forward=FeedForward(layer.gate_up, layer.down, selection))

    layers = tuple(change(index, layer) for index, layer in enumerate(decoder.weights.layers))
    weights: Weights = dataclasses.replace(decoder.weights, layers=layers)
    chains = [layer.feed_forward for layer in layers if layer.feed_forward.selection is not None]
    cpu = torch.device("cpu")
    store = PageStore(float_layout(spec, torch.float32), backend.info.page_count, devices=[cpu] * spec.layer_count)
    stage = Stage(range(spec.layer_count), cpu, KernelArithmetic(spec))
    return TorchBackend(Decoder(spec, weights, [stage]), store, 2048, SparseLayers(chains))


def measure(dense: TorchBackend, sparse: TorchBackend, batch: int, steps: int) -> dict[str, Any]:
    """Seconds of a step, both ways, and what the sparse one computed."""
    generator = torch.Generator().manual_seed(batch)
    pages = [(2 * row, 2 * row + 1) for row in range(batch)]
    for row, table in enumerate(pages):
        prompt = tuple(torch.randint(0, cpu_decode.VOCABULARY, (CONTEXT,), generator=generator).tolist())
        for backend in (dense, sparse):
            backend.step(Batch((Row(str(row), prompt, 0, table, False, prompt_tokens=CONTEXT),)))
    assert sparse.activation is not None
    before = sparse.activation.figures
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for step in range(steps):
        at = CONTEXT + step % PAGE_TOKENS
        tokens = torch.randint(0, cpu_decode.VOCABULARY, (batch,), generator=generator).tolist()
        rows = Batch(tuple(Row(str(i), (token,), at, pages[i], True) for i, token in enumerate(tokens)))
        for name, backend in (("dense", dense), ("sparse", sparse))[:: 1 if step % 2 else -1]:
            started = time.perf_counter()
            backend.step(rows)
            seconds[name].append(time.perf_counter() - started)
    after = sparse.activation.figures
    computed, skipped = after.computed - before.computed, after.skipped - before.skipped
    medians = {name: statistics.median(found[2:]) for name, found in seconds.items()}
    return {
        "batch": batch,
        "union": computed / (computed + skipped),
        "dense_s": medians["dense"],
        "sparse_s": medians["sparse"],
        "ratio": medians["dense"] / medians["sparse"],
        "seconds": seconds,
    }


def draw(results: list[dict[str, Any]], precision: str) -> str:
    """Speed against density, one line a batch."""
    own = [result for result in results if result["precision"] == precision]
    densities = sorted({result["density"] for result in own})
    series = {
        f"batch {batch}": [
            next(r["ratio"] for r in own if r["batch"] == batch and r["density"] == density) for density in densities
        ]
        for batch in sorted({result["batch"] for result in own})
    }
    axis = plots.Axis.around("decode speed against dense", [value for values in series.values() for value in values])
    categories = [f"{density:.0%}" for density in densities]
    return plots.draw_lines(f"Random 100M, {precision}: speed by density of a token", axis, categories, series)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path, help="SVG of the first precision")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--layers", type=int, default=cpu_decode.SHAPE["num_hidden_layers"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precisions", nargs="+", default=["INT8", "INT4", "FP32"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ops.set_threads(options.threads)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cpu_decode.write_model(folder, cpu_decode.SHAPE | {"num_hidden_layers": options.layers})
        for precision in options.precisions:
            with torch.inference_mode():
                dense = load_backend(
                    folder, precision=Precision(precision), max_running_requests=32, max_sequence_tokens=2 * PAGE_TOKENS
                )
                for density in options.densities:
                    sparse = build_sparse(dense, density)
                    for batch in options.batches:
                        found = measure(dense, sparse, batch, options.steps)
                        results.append({"precision": precision, "density": density} | found)
                        print(
                            f"{precision} density {density:.2f} batch {batch:2}: union {found['union']:.2f} "
                            f"dense {found['dense_s'] * 1e3:.2f} ms, sparse {found['sparse_s'] * 1e3:.2f} ms, "
                            f"{found['ratio']:.2f} times as fast",
                            flush=True,
                        )
    facts = {"threads": options.threads, "load_average": os.getloadavg(), "kernels": ops.available().reason}
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(draw(results, options.precisions[0]))
    print(f"load average {facts['load_average']}")


if __name__ == "__main__":
    main()
