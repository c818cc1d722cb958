"""Read kernel names out of a plan of TensorRT-RTX. Undocumented, so for diagnostics and tests, never a decision."""

from __future__ import annotations

import contextlib
import mmap
import re
from pathlib import Path
from typing import Final

_EXPANDING: Final = re.compile(rb"__myl_(?:Repl)?CastMulCast(?![A-Za-z])")
"""A kernel of its own that turns codes into floats: the whole weight is written out at every step. Where more follows
in the name, the expansion is part of a product or a gather."""


def find_expanding_kernels(plan: Path) -> tuple[str, ...]:
    """Names of kernels that write integer weights out as floats, in order of their names."""
    with plan.open("rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
        return tuple(sorted({match.group().decode() for match in _EXPANDING.finditer(data)}))
