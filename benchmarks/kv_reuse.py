"""What quantised pages and reuse of prefixes cost and win: `python benchmarks/kv_reuse.py [--output FILE]`.

quality    perplexity of the shipped model on its held-out text with pages of 8 and 4 bits, against 16; and a retrieval
           probe: how often a passage that was read before is continued right
capacity   bytes of pages and tails for a number of sequences, against float16
attention  the CPU kernel over 4-bit, float16 and float32 pages, in turns in one loop
reuse      time to the first token of a long prompt, its beginning found or not, on a random model
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cpu_decode import SHAPE, write_model
from cpu_kernels import time_pair

from windlass_kernels import ops, quantized_pages
from windlass_kernels.page_format import PAGE_TOKENS, PageFormat
from windlass_runtime import AutoModel, InferenceConfig
from windlass_runtime.backends.base import Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.torch_backend import TorchBackend
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.kv.store import CacheLayout, plan_layout, sequence_pages
from windlass_runtime.model.ragged import lay_out
from windlass_runtime.model.tails import lay_out_tails
from windlass_runtime.tokenizer import Tokenizer

TINY = Path(__file__).parent.parent / "examples/models/windlass-tiny"
WINDOW = 1024
PASSAGE, GAP = 160, 600
"""Of the probe: tokens of a passage, and of other text until it comes again."""


def all_logits(backend: TorchBackend, tokens: list[int]) -> torch.Tensor:
    """Logits after each token, in one step from an empty cache: [T, V]."""
    decoder, store = backend._decoder, backend._store
    assert decoder is not None
    assert store is not None
    rows = [Row("r", tuple(tokens), 0, tuple(range(sequence_pages(len(tokens)))), True)]
    cpu = torch.device("cpu")
    tails = lay_out_tails(rows, store.layout, cpu) if store.layout.quantized_layers else None
    with torch.inference_mode():
        return decoder.forward(lay_out(rows, cpu), store, torch.arange(len(tokens)), tails)


def measure_quality(windows: int) -> dict[str, dict[str, float]]:
    """By bits: perplexity, mean divergence from 16 bits in nats per token, and accuracy of the probe."""
    text = Tokenizer.load(TINY).encode((TINY / "heldout.txt").read_text("utf-8"), add_special_tokens=False)
    results: dict[str, dict[str, float]] = {}
    truth: list[torch.Tensor] = []
    for bits in (0, 8, 4):
        backend = load_backend(TINY, cache_bits=bits, max_running_requests=1, step_tokens=WINDOW)
        nats = divergence = right = count = asked = 0.0
        for index in range(windows):
            window = [1, *text[index * (WINDOW - 1) : (index + 1) * (WINDOW - 1)]]
            logits = all_logits(backend, window).double().log_softmax(-1)
            nats -= logits[:-1].gather(1, torch.tensor(window[1:])[:, None]).sum().item()
            count += len(window) - 1
            if bits == 0:
                truth.append(logits)
            divergence += (truth[index].exp() * (truth[index] - logits)).sum().item()
            passage = window[1 : 1 + PASSAGE]
            probe = [1, *passage, *window[1 + PASSAGE : 1 + PASSAGE + GAP], *passage]
            seen = all_logits(backend, probe)[-PASSAGE:-1].argmax(-1).tolist()
            right += sum(a == b for a, b in zip(seen, passage[1:], strict=True))
            asked += PASSAGE - 1
        results[str(bits or 16)] = {
            "perplexity": math.exp(nats / count),
            "divergence": divergence / (count + windows),
            "retrieval": right / asked,
        }
    return results


def measure_capacity() -> dict[str, float]:
    """How many times fewer bytes 4 bits take than float16; with the tails of 8 running sequences included."""
    spec, ratios = read_spec(TINY), dict[str, float]()
    floats = CacheLayout(spec, (0,) * spec.layer_count, torch.float16, torch.float16)
    quantized = plan_layout(spec, 4, dtype=torch.float16, tail_dtype=torch.float16, lanes=8, step_tokens=512)
    ratios["pages alone"] = floats.page_bytes / quantized.page_bytes
    for tokens in (1024, 8192, 32768):
        pages = 8 * sequence_pages(tokens)
        ratios[f"8 x {tokens} tokens"] = (
            pages * floats.page_bytes / (pages * quantized.page_bytes + quantized.tail_bytes)
        )
    return ratios


def measure_attention(context: int, seconds: float) -> dict[str, float]:
    """Milliseconds of one decoding token, 12 heads on 4, width 64, by format of the pages."""
    heads, kv_heads, width = 12, 4, 64
    pages, layout = context // PAGE_TOKENS, PageFormat(4, width)
    copies = max(2, (64 << 20) // (pages * kv_heads * layout.size))
    stored = torch.randint(0, 255, (copies * pages, kv_heads, layout.size), dtype=torch.uint8)
    one = quantized_pages.quantize(torch.randn(kv_heads, 64, width), torch.randn(kv_heads, 64, width), layout)
    stored[:] = one
    tails = [torch.randn(1, kv_heads, PAGE_TOKENS, width).half() for _ in range(2)]
    tables = [(torch.arange(pages, dtype=torch.int32) + copy * pages)[None] for copy in range(copies)]
    position, row = torch.tensor([context - 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    query, base = torch.randn(1, heads, width), torch.rand(pages, width // 2)

    def ours(round_: int) -> object:
        return quantized_pages.attention(
            query, stored, *tails, tables[round_ % copies], row, row, position, base, base, 0.125, layout
        )

    result = {}
    for dtype in (torch.float16, torch.float32):
        count = max(2, (64 << 20) // (pages * kv_heads * 64 * width * dtype.itemsize * 2))
        pools = [torch.randn(count * pages, kv_heads, PAGE_TOKENS, width).to(dtype) for _ in range(2)]
        own = [(torch.arange(pages, dtype=torch.int32) + copy * pages)[None] for copy in range(count)]

        def theirs(round_: int, pools: Any = pools, own: Any = own) -> object:
            return ops.paged_attention(query, *pools, own[round_ % len(own)], row, position, 0.125)

        quick, slow = time_pair(ours, theirs, seconds)
        name = str(dtype).removeprefix("torch.")
        result[f"4 bits beside {name}, ms"] = quick * 1e3
        result[f"{name}, ms"] = slow * 1e3
        result[f"speed-up over {name}"] = slow / quick
    return result


def measure_reuse(tokens: int, repeats: int) -> dict[str, float]:
    """Seconds to the first token of a prompt, nothing found and all but its end found; a random model of 25M."""
    shape = SHAPE | {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8000, "max_position_embeddings": tokens + 64,
    }  # fmt: skip
    generator = random.Random(0)
    missed, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), shape)
        config = InferenceConfig(kv_cache_quantization=4, enable_cache_reuse=True, max_running_requests=2)
        with AutoModel.from_pretrained(folder, config=config) as model:
            for _ in range(repeats):
                prompt = [generator.randrange(8000) for _ in range(tokens)]
                for kept in (missed, found):
                    start = time.perf_counter()
                    model.generate(prompt, max_new_tokens=1)
                    kept.append(time.perf_counter() - start)
    before, after = statistics.median(missed), statistics.median(found)
    return {"missed, s": before, "found, s": after, "saved": 1 - after / before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8, help="windows of 1,024 tokens for quality")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each comparison of attention")
    parser.add_argument("--prompt", type=int, default=8192, help="tokens of the prompt that is sent twice")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=["quality", "capacity", "attention", "reuse"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    parts = {
        "quality": lambda: measure_quality(arguments.windows),
        "capacity": measure_capacity,
        "attention": lambda: {str(n): measure_attention(n, arguments.seconds) for n in (1024, 2048, 8192)},
        "reuse": lambda: measure_reuse(arguments.prompt, arguments.repeats),
    }
    results = {name: part() for name, part in parts.items() if name in (arguments.only or parts)}
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
