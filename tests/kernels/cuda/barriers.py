"""Take one barrier after the other out of the device kernels: each must be missed.

A script: it compiles the emulated kernels once per barrier, which takes some minutes. Exit status 1 if the kernels are
right without one of their barriers, in every order of threads: then it is useless, or the samples do not reach it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from windlass_kernels.cuda import compile as cuda_compile
from windlass_kernels.cuda import emulate, samples
from windlass_kernels.cuda.schema import find_differences

BARRIER = "sync_block();"


def find_barriers() -> Iterator[tuple[Path, int]]:
    """File and offset of each, but for the definition."""
    for file in [*cuda_compile.sources(), *sorted(cuda_compile.FOLDER.glob("*.cuh"))]:
        if file.name != "device.cuh":
            yield from ((file, match.start()) for match in re.finditer(re.escape(BARRIER), file.read_text()))


def find_orders_that_notice(file: Path, offset: int, folder: Path) -> list[str]:
    """In which orders of threads some sample comes out wrong without the barrier."""
    shutil.copytree(cuda_compile.FOLDER, folder, dirs_exist_ok=True)
    text = file.read_text()
    (folder / file.name).write_text(text[:offset] + text[offset + len(BARRIER) :])
    units = [file.name] if file.suffix == ".cu" else [source.name for source in cuda_compile.sources()]
    os.environ["WINDLASS_KERNEL_CACHE"] = str(folder)  # the cache's key knows no changed header
    library = emulate.compile_library([folder / unit for unit in units])
    reached = [sample for sample in samples.build_small(seed=7) if sample.op.source in units]
    return [order for order in emulate.ORDERS if any(is_wrong(sample, order, library) for sample in reached)]


def is_wrong(sample: samples.Sample, order: str, library: object) -> bool:
    expected = sample.op.reference(**sample.inputs, **sample.attributes)
    try:
        found = emulate.run(sample.op, sample.inputs, sample.attributes, order=order, library=library)
    except emulate.EmulationError:
        return True
    return bool(find_differences(sample.op, found, expected))


def main() -> int:
    unnoticed = 0
    for file, offset in find_barriers():
        line = file.read_text()[:offset].count("\n") + 1
        with tempfile.TemporaryDirectory() as folder:
            orders = find_orders_that_notice(file, offset, Path(folder))
        print(f"{file.name}:{line}: {', '.join(orders) or 'NOT NOTICED'}", flush=True)
        unnoticed += not orders
    return min(1, unnoticed)


if __name__ == "__main__":
    sys.exit(main())
