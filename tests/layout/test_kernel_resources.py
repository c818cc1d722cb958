"""docs/benchmarks/kernel-resources.md was written from the CUDA sources as they are, and speaks of every kernel."""

from __future__ import annotations

import re
from pathlib import Path

from windlass_kernels.cuda import compile as cuda_compile

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "benchmarks" / "kernel-resources.md").read_text()


def test_the_table_belongs_to_the_sources_as_they_are() -> None:
    assert f"Sources: `{cuda_compile.source_digest()}`" in PAGE, "run make cuda"


def test_every_kernel_has_its_row_and_every_target_its_column() -> None:
    named = set()
    for source in cuda_compile.sources():
        text = source.read_text()
        named |= set(re.findall(r"^windlass_(\w+)\(", text, re.MULTILINE))
        for suffix in re.findall(r"^WINDLASS_SPARSE_FFN\((\w+),", text, re.MULTILINE):
            named |= {f"sparse_gate_up_{suffix}", f"sparse_down_{suffix}"}
        for width in re.findall(r"^WINDLASS_PAGED_ATTENTION\((\d+),", text, re.MULTILINE):
            named.add(f"paged_attention_d{width}")
    header, _, *rows = re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)

    assert {row.split("`")[1] for row in rows} == named
    assert all(target in header for target in cuda_compile.TARGETS)


def test_the_compiler_is_the_pinned_one() -> None:
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements-nvcc.txt").read_text(), re.MULTILINE))

    assert f"V{pins['nvidia-cuda-nvcc']}" in PAGE
