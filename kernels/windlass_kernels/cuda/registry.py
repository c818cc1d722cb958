"""Every device op by name: the list that plugins, launches, tests, checks and the resource report go through."""

from __future__ import annotations

from windlass_kernels.cuda import cache, products, rowwise
from windlass_kernels.cuda.schema import Op, OpError

OPS: dict[str, Op] = {op.name: op for op in (*products.OPS, *rowwise.OPS, *cache.OPS)}


def find(name: str) -> Op:
    """Raises OpError for a name that no op has."""
    if name not in OPS:
        raise OpError(f"device op: expected one of {', '.join(sorted(OPS))}, found {name!r}")
    return OPS[name]
