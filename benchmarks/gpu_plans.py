"""TensorRT plans on a GPU: whether they load and agree with torch, and how long a decode step takes. Part of gpu_check.

Needs `tensorrt` >= 11 or `tensorrt-rtx`, and a GPU that it builds for; says so and measures nothing where one lacks.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from support.generation import Sequenced, generate_greedily
from windlass_contract.launch_spec import Device, LaunchSpec, Precision
from windlass_runtime.backends.base import Backend, Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.errors import RuntimeFault
from windlass_runtime.jobs.engine_upgrade import open_engine, parse_upgrade

TINY = Path(__file__).resolve().parents[1] / "examples/models/windlass-tiny"
PRECISIONS = (Precision.INT8, Precision.INT4, Precision.FP16)
NEW_TOKENS, STEPS, CONTEXT = 32, 64, 256
TOLERANCE = 0.25
"""Of logits up to 20 in FP16 on both sides; the token agreement beside it says whether a difference matters."""
ROWS = (1, 2, 3, 4)


def check_plans() -> tuple[bool, str]:
    """Whether all that could run agreed, and a table in Markdown."""
    lines = ["| precision | largest logit difference | greedy tokens equal | ms per step at 1 / 4 rows, plan | torch |"]
    lines.append("|---|---|---|---|---|")
    passed = True
    for precision in PRECISIONS:
        try:
            agreed, line = _check_precision(precision)
        except RuntimeFault as exc:
            agreed, line = True, f"| {precision} | not run: {exc} | | | |"
        passed, lines = passed and agreed, [*lines, line]
    return passed, "\n".join(lines)


def _check_precision(precision: Precision) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as store:
        spec = LaunchSpec(
            model_uri=str(TINY),
            served_name="tiny",
            device=Device.CUDA,
            precision=precision,
            engine_store=store,
            max_running_requests=8,
        )
        plan = open_engine(parse_upgrade(spec, TINY))
        reference = load_backend(TINY, device=Device.CUDA, precision=precision, max_running_requests=8)
        difference, equal = 0.0, 0
        for rows in ROWS:
            prompts = [[1, *range(5, 70 + 13 * row)] for row in range(rows)]
            # Chunks and staggered starts: prefill beside decode, and idle slots between live ones.
            found = generate_greedily(plan, prompts, NEW_TOKENS, chunk=40, stagger=2)
            expected = generate_greedily(reference, prompts, NEW_TOKENS, chunk=40, stagger=2)
            difference = max(difference, _largest_first_difference(found, expected))
            equal += sum(a.generated == b.generated for a, b in zip(found, expected, strict=True))
        times = [[_decode_s(backend, rows) for rows in (1, 4)] for backend in (plan, reference)]
        plan.close()
        reference.close()
    shown = [" / ".join(f"{seconds * 1e3:.2f}" for seconds in part) for part in times]
    line = f"| {precision} | {difference:.3f} | {equal} of {sum(ROWS)} | {shown[0]} | {shown[1]} |"
    return difference <= TOLERANCE, line


def _largest_first_difference(found: list[Sequenced], expected: list[Sequenced]) -> float:
    """Of the first logits of each sequence: later ones follow tokens that may differ."""
    return max(float((a.logits[0] - b.logits[0]).abs().max()) for a, b in zip(found, expected, strict=True))


def _decode_s(backend: Backend, rows: int) -> float:
    """Median seconds of a decode step."""
    pages = -(-(CONTEXT + STEPS) // backend.info.page_tokens)
    tables = [tuple(range(row * pages, (row + 1) * pages)) for row in range(rows)]
    for row, table in enumerate(tables):
        backend.step(Batch((Row(str(row), tuple(range(3, CONTEXT + 3)), 0, table, wants_logits=True),)))
    times = []
    for index in range(STEPS):
        batch = Batch(tuple(Row(str(row), (7,), CONTEXT + index, table, True) for row, table in enumerate(tables)))
        torch.cuda.synchronize()
        started = time.perf_counter()
        backend.step(batch).argmax(-1).tolist()
        times.append(time.perf_counter() - started)
    return statistics.median(times[STEPS // 8 :])


def main() -> int:
    passed, table = check_plans()
    print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
