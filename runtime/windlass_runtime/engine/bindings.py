"""Find TensorRT: `tensorrt` of 11 or later where there is a GPU, or `tensorrt_rtx`, which also builds without one."""

from __future__ import annotations

import enum
import importlib
from dataclasses import dataclass
from typing import Any, Final

from windlass_runtime.errors import EngineUnavailable


class Kind(enum.StrEnum):
    """The two packages. Plans of one never run on the other."""

    FULL = "tensorrt"
    RTX = "tensorrt-rtx"


MODULES: Final = {Kind.FULL: "tensorrt", Kind.RTX: "tensorrt_rtx"}
PLAN_SUFFIXES: Final = {Kind.FULL: ".trt.plan", Kind.RTX: ".rtx.plan"}
LEAST_VERSIONS: Final = {Kind.FULL: (11, 0), Kind.RTX: (1, 7)}
INSTALL: Final = {Kind.FULL: "pip install 'tensorrt>=11'", Kind.RTX: "pip install 'windlass[rtx]'"}


@dataclass(frozen=True, slots=True)
class Bindings:
    """An imported TensorRT and what it can do."""

    kind: Kind
    version: str
    module: Any


def load_bindings(wanted: Kind | None, *, has_gpu: bool) -> Bindings:
    """Import one. Without a wish: the full package where it can build, else RTX. Raises EngineUnavailable."""
    order = [wanted] if wanted is not None else ([Kind.FULL, Kind.RTX] if has_gpu else [Kind.RTX])
    reasons = []
    for kind in order:
        try:
            return _import(kind)
        except EngineUnavailable as exc:
            reasons.append(str(exc))
    raise EngineUnavailable("; ".join(reasons))


def _import(kind: Kind) -> Bindings:
    try:
        module = importlib.import_module(MODULES[kind])
    except ImportError as exc:
        raise EngineUnavailable(f"{kind}: expected the package, found none ({exc}); {INSTALL[kind]}") from exc
    version = str(module.__version__)
    least = LEAST_VERSIONS[kind]
    if tuple(int(part) for part in version.split(".")[:2]) < least:
        raise EngineUnavailable(
            f"{kind}: expected version {least[0]}.{least[1]} or later, found {version}; {INSTALL[kind]}"
        )
    return Bindings(kind, version, module)
