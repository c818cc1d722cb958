"""The compiled library as ctypes functions: loaded once per process, or the reason why not. Knows no tensors."""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import dataclass
from pathlib import Path

from windlass_kernels import build

logger = logging.getLogger(__name__)

_POINTER, _I64, _I32, _F32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
_SIGNATURES: dict[str, tuple[type[ctypes._SimpleCData[int]] | type, ...]] = {
    "linear": (_POINTER,) * 4 + (_I64,) * 3 + (_I32,),
    "packed_linear": (_POINTER,) * 5 + (_I64,) * 4 + (_F32, _I32),
    "packed_rows": (_POINTER,) * 4 + (_I64,) * 3 + (_I32,),
    "norm": (_POINTER,) * 4 + (_I64,) * 2 + (_F32,),
    "silu_mul": (_POINTER,) * 2 + (_I64,) * 2,
    "rope_and_store": (_POINTER,) * 11 + (_I64,) * 5 + (_F32, _I32, _I32),
    "feed_forward": (_POINTER,) * 8 + (_I64,),
    "paged_attention": (_POINTER,) * 7 + (_I64,) * 6 + (_F32, _I32),
    "stored_attention": (_POINTER,) * 11 + (_I64,) * 7 + (_F32, _I32, _I32),
    "quantize_pages": (_POINTER,) * 5 + (_I64,) * 3 + (_I32, _I32),
}


class MatrixFields(ctypes.Structure):
    """`Matrix` of include/windlass/feed_forward.h."""

    _fields_ = (
        ("data", _POINTER),
        ("scales", _POINTER),
        ("bias", _POINTER),
        ("n", _I64),
        ("k", _I64),
        ("group", _I64),
        ("input_scale", _F32),
        ("format", _I32),
    )


class FeedForwardFields(ctypes.Structure):
    """`FeedForward` of include/windlass/feed_forward.h."""

    _fields_ = (
        ("gate_up", MatrixFields),
        ("down", MatrixFields),
        ("narrow", MatrixFields),
        ("wide", _POINTER),
        ("bias", _POINTER),
        ("norms", _POINTER),
        ("sparse_rows", _I64),
        ("cut", _F32),
        ("dense_above", _F32),
        ("selection", _I32),
    )


class Library:
    """The functions of one built library. Arguments are addresses and sizes; the caller keeps the memory alive."""

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._c, f"windlass_{name}")
            function.argtypes, function.restype = arguments, None
        self._c.windlass_feed_forward.restype = _I64
        self._c.windlass_isa.restype = ctypes.c_char_p
        self._c.windlass_choose_isa.argtypes = (ctypes.c_char_p,)
        self._c.windlass_set_threads.argtypes = (ctypes.c_int,)
        self._c.windlass_read_all.argtypes = (_POINTER, _I64)
        self._c.windlass_read_all.restype = _F32
        self.read_all = self._c.windlass_read_all
        self.linear = self._c.windlass_linear
        self.packed_linear = self._c.windlass_packed_linear
        self.packed_rows = self._c.windlass_packed_rows
        self.norm = self._c.windlass_norm
        self.silu_mul = self._c.windlass_silu_mul
        self.feed_forward = self._c.windlass_feed_forward
        self.rope_and_store = self._c.windlass_rope_and_store
        self.paged_attention = self._c.windlass_paged_attention
        self.stored_attention = self._c.windlass_stored_attention
        self.quantize_pages = self._c.windlass_quantize_pages

    @property
    def isa(self) -> str:
        """The instruction set in use: avx512, avx2 or portable."""
        name: bytes = self._c.windlass_isa()
        return name.decode()

    def choose_isa(self, name: str) -> bool:
        """Use another set from now on; False if this processor lacks it. For tests and measurements."""
        return bool(self._c.windlass_choose_isa(name.encode()))

    @property
    def threads(self) -> int:
        return int(self._c.windlass_threads())

    def set_threads(self, count: int) -> None:
        self._c.windlass_set_threads(count)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The library, or None and why."""

    library: Library | None
    reason: str


@functools.cache
def load() -> Loaded:
    """Build if needed and load; the first call may take some 20 s. Without a compiler: one warning, and no library."""
    try:
        library = Library(build.build())
    except (build.BuildError, OSError) as exc:
        logger.warning("CPU kernels are not available, the slow reference runs instead: %s", exc)
        return Loaded(None, str(exc))
    return Loaded(library, f"native kernels, {library.isa}")
