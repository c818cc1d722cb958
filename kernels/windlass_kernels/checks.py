"""Refuse tensors a kernel cannot take, naming the argument, what was expected and what was found."""

from __future__ import annotations

import torch
from torch import Tensor

PAGE_TOKENS = 64
"""Positions per page of keys or values."""

WEIGHT_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Storage types of weights and pages, and how the native library calls them."""


class ShapeError(ValueError):
    """An argument's shape, type, layout or device does not fit the op."""


def describe(tensor: Tensor) -> str:
    """Shape, type, device and layout in one phrase."""
    layout = "" if tensor.is_contiguous() else ", not contiguous"
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}{layout}"


def refuse(op: str, name: str, expected: str, found: Tensor) -> ShapeError:
    """The error for one argument."""
    return ShapeError(f"{op}: {name} must be {expected}, found {describe(found)}")
