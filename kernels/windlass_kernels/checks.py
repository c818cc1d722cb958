"""Refuse tensors an op cannot take, naming the argument, what was expected and what was found.

A decode step makes some hundred calls, so the common case is one expression per tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PAGE_TOKENS = 64
"""Positions per page of keys or values."""

WEIGHT_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Storage types of weights and pages, and how the native library calls them."""

STORED = tuple(WEIGHT_CODES)
FLOAT = (torch.float32,)
INDEX = (torch.int32,)


class ShapeError(ValueError):
    """An argument's shape, type, layout or device does not fit the op."""


def describe(tensor: Tensor) -> str:
    """Shape, type, device and layout in one phrase."""
    layout = "" if tensor.is_contiguous() else ", not contiguous"
    return f"{list(tensor.shape)} {_name(tensor.dtype)} on {tensor.device}{layout}"


def require(
    op: str, name: str, found: Tensor, shape: tuple[int, ...], dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """Raise ShapeError unless `found` is contiguous, of `shape`, of one of `dtypes`, on `device`."""
    if found.shape == shape and found.dtype in dtypes and found.device == device and found.is_contiguous():
        return
    types = " or ".join(_name(dtype) for dtype in dtypes)
    raise ShapeError(f"{op}: {name} must be contiguous {list(shape)} {types} on {device}, found {describe(found)}")


def require_dimensions(op: str, name: str, found: Tensor, dimensions: str) -> tuple[int, ...]:
    """The sizes of `found`; ShapeError unless it has as many as `dimensions` names, for example "T H D"."""
    if found.dim() != len(dimensions.split()):
        raise ShapeError(f"{op}: {name} must be [{dimensions.replace(' ', ', ')}], found {describe(found)}")
    return tuple(found.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
