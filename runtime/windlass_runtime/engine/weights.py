"""The numbers behind a graph's constants: the checkpoint, the recipe over it, and what follows from the spec."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.engine.graph import DType, Field, Filled, FromModel, Positions, RotaryTable, Source, Turn, Value
from windlass_runtime.errors import EngineError
from windlass_runtime.model.rope import inverse_frequencies
from windlass_runtime.model.weights import Overlay
from windlass_runtime.quant.recipe import pack_nibbles

Array = npt.NDArray[Any]

TORCH: Final = {
    DType.FP32: torch.float32,
    DType.FP16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.INT32: torch.int32,
    DType.INT8: torch.int8,
}
_SMALLEST_HALF_SCALE: Final = 2.0**-24
"""The least FP16 number; rows with a smaller scale would become zero."""


class WeightSource(Protocol):
    """Reads constants one at a time."""

    def read(self, source: Source, like: Value) -> torch.Tensor:
        """The numbers of `source` in the shape and format of `like`; 4-bit codes as int8, one each."""
        ...


class ModelWeights:
    """The weights of one open checkpoint."""

    def __init__(self, spec: ModelSpec, tensors: CheckpointTensors, overlay: Overlay | None) -> None:
        self._spec = spec
        self._tensors = tensors
        self._overlay = overlay
        self._shapes = layout.expected_tensors(spec)
        self._last_codes: tuple[str, tuple[torch.Tensor, torch.Tensor]] | None = None

    def read(self, source: Source, like: Value) -> torch.Tensor:
        """See `WeightSource`. Raises CheckpointError, EngineError."""
        match source:
            case FromModel():
                return self._from_model(source, like)
            case Filled(number):
                return torch.full(like.sizes, number, dtype=TORCH[like.dtype])
            case Positions():
                return torch.arange(like.sizes[-1], dtype=TORCH[like.dtype]).expand(like.sizes).contiguous()
            case RotaryTable(turn):
                angles = torch.arange(like.sizes[0]).float()[:, None] * inverse_frequencies(self._spec.rope)
                return (angles.cos() if turn is Turn.COS else angles.sin()).to(TORCH[like.dtype])

    def _from_model(self, source: FromModel, like: Value) -> torch.Tensor:
        if source.field is Field.VALUES:
            return self._values(source.tensor)[source.first : source.stop].to(TORCH[like.dtype]).reshape(like.sizes)
        codes, scales = (part[source.first : source.stop] for part in self._codes(source.tensor))
        if source.field is Field.CODES:
            return codes.contiguous()
        return _as_scales(source.tensor, codes, scales, like).contiguous()

    def _codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of a tensor. The last ones are kept: both are asked for in turn, and may be rounded anew."""
        assert self._overlay is not None, f"{name}: codes without a recipe"
        if self._last_codes is None or self._last_codes[0] != name:
            self._last_codes = name, self._overlay.codes(name)
        return self._last_codes[1]

    def _values(self, name: str) -> torch.Tensor:
        if self._overlay is not None and self._overlay.entry(name) is not None:
            return self._overlay.plain(name)
        values = torch.empty(self._shapes[name])
        self._tensors.read_into(name, values)
        return values


def _as_scales(name: str, codes: torch.Tensor, scales: torch.Tensor, like: Value) -> torch.Tensor:
    """Scales in the format of arithmetic. Raises EngineError where it cannot hold them."""
    kept = scales.to(TORCH[like.dtype])
    used = codes.reshape(*scales.shape, -1).ne(0).any(dim=-1)
    if like.dtype is DType.FP16 and bool((used & ~(kept.abs() >= _SMALLEST_HALF_SCALE)).any()):
        raise EngineError(f"{name}: expected scales that FP16 can hold, found {float(scales[used].min())}; use BF16")
    return kept


def as_stored(tensor: torch.Tensor, dtype: DType) -> Array:
    """The bytes a builder reads, dense: BF16 as uint16, 4-bit codes two a byte with the low nibble first."""
    if dtype is DType.BF16:
        return tensor.contiguous().view(torch.int16).numpy()
    if dtype is DType.INT4:
        tensor = pack_nibbles(tensor)
    return np.ascontiguousarray(tensor.numpy())
