"""What each device kernel takes on each architecture: registers, spills, shared memory. Writes one Markdown table.

    WINDLASS_NVCC=... python benchmarks/kernel_resources.py            # writes docs/benchmarks/kernel-resources.md
    WINDLASS_NVCC=... python benchmarks/kernel_resources.py --check    # exit code 1 if that file would change

`make cuda` does it with the pinned compiler. Compiling is all: no GPU is needed, and none is asked.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from windlass_kernels.cuda import compile as cuda_compile
from windlass_kernels.cuda import samples
from windlass_kernels.cuda.schema import bind, describe_arrays

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "kernel-resources.md"
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Use:
    """Of one kernel on one architecture. Spills are bytes stored and loaded."""

    kernel: str
    target: str
    registers: int
    spills: int
    static_shared: int


def parse_report(text: str) -> list[Use]:
    """What `ptxas -v` said, in its order. Raises ValueError for a kernel without figures."""
    found = []
    for block in re.split(r"(?=ptxas info\s+: Compiling entry function)", text):
        entry = _ENTRY.search(block)
        if entry is None:
            continue
        spills, registers, shared = _SPILLS.search(block), _REGISTERS.search(block), _SHARED.search(block)
        if spills is None or registers is None:
            raise ValueError(f"{entry[1]} for {entry[2]}: ptxas gave no figures")
        stored, loaded = int(spills[2]), int(spills[3])
        found.append(Use(entry[1], entry[2], int(registers[1]), stored + loaded, int(shared[1]) if shared else 0))
    return found


def compile_all() -> tuple[str, list[Use]]:
    """The compiler's version, and every kernel on every target."""
    nvcc, found = cuda_compile.find_nvcc(), []
    with tempfile.TemporaryDirectory() as folder:
        for target in cuda_compile.TARGETS:
            for source in cuda_compile.sources():
                output = Path(folder) / f"{source.stem}.cubin"
                found += parse_report(cuda_compile.run_nvcc(nvcc, source, target, output, "-Xptxas", "-v"))
    return nvcc.version, found


def dynamic_shared() -> dict[str, tuple[int, int]]:
    """Threads and bytes of shared memory that a launch asks for, of each kernel, with the arrays of `samples`."""
    asked: dict[str, tuple[int, int]] = {}
    for sample in samples.build_small(seed=0):
        call = bind(sample.op, describe_arrays(sample.inputs), sample.attributes)
        before = asked.get(call.kernel, (0, 0))
        asked[call.kernel] = (call.launch.threads, max(before[1], call.launch.shared_bytes))
    return asked


def render(version: str, uses: Iterable[Use]) -> str:
    rows: dict[str, dict[str, Use]] = {}
    asked = dynamic_shared()
    for use in uses:
        rows.setdefault(use.kernel, {})[use.target] = use
    head = ["kernel", "threads", "shared, bytes", *cuda_compile.TARGETS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for kernel in sorted(rows):
        threads, shared = asked[kernel]
        cells = [
            str(use.registers) + (f" (+{use.spills})" if use.spills else "")
            for use in (rows[kernel][target] for target in cuda_compile.TARGETS)
        ]
        total = shared + max(use.static_shared for use in rows[kernel].values())
        lines.append(f"| `{kernel.removeprefix('windlass_')}` | {threads} | {total} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Resources of the device kernels",
            "",
            "Written by `make cuda` (`benchmarks/kernel_resources.py`); CI fails when it is stale. No speeds here.",
            "",
            "Registers per thread by architecture, and in brackets the bytes that a thread spills (stored and loaded).",
            "Shared memory is what a launch asks for; where it grows with a size, with the arrays of the tests.",
            "",
            *lines,
            "",
            f"Compiler: {version}. Sources: `{cuda_compile.source_digest()}`.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = render(*compile_all())
    if options.check:
        if PAGE.exists() and PAGE.read_text() == text:
            return 0
        print(f"{PAGE.name} is out of date: run make cuda and commit it", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
