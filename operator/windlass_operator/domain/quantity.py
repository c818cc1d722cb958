"""Read Kubernetes quantities, and write them the way the API server stores them.

The schema has checked their form. A quantity in canonical form equals what comes back, so it never looks like drift.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Final

_DECIMAL: Final = {
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
_BINARY: Final = {
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}


@functools.lru_cache(maxsize=1024)
def parse_quantity(text: str) -> Fraction:
    """Value of `500m`, `1.5Gi`, `8`. Raises ValueError for anything else."""
    digits, suffix = _split(text)
    return Fraction(digits) * (_BINARY.get(suffix) or _DECIMAL[suffix])


def parse_bytes(text: str) -> int:
    """Whole bytes of a memory quantity, rounded down."""
    return int(parse_quantity(text))


def canonical_quantity(text: str) -> str:
    """The same value as the API server spells it: no fraction, the largest possible suffix; `1.5Gi` is `1536Mi`."""
    value, (_, suffix) = parse_quantity(text), _split(text)
    suffixes = _BINARY if suffix in _BINARY and value >= 1024 else _DECIMAL
    for name, factor in sorted(suffixes.items(), key=lambda item: item[1], reverse=True):
        if value and (value / factor).denominator == 1:
            return f"{value / factor}{name}"
    return str(value) if value.denominator == 1 else text


def _split(text: str) -> tuple[str, str]:
    digits = text.rstrip("mkMGTPEKi")
    suffix = text[len(digits) :]
    if not digits or (suffix not in _DECIMAL and suffix not in _BINARY):
        raise ValueError(f"quantity: expected a number with a suffix such as Gi or m, found {text!r}")
    return digits, suffix
