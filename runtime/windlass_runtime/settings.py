"""What a caller of the Python API can choose. Servers take a LaunchSpec instead; both name the same things."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from windlass_contract.launch_spec import CacheReuse, Device, LaunchSpec, Precision, SparseActivation

_CACHE_BITS: Final[Mapping[int, int]] = {4: 4, 8: 8, 16: 0}
"""From the option's numbers to LaunchSpec's."""


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How a model is loaded and run. An option that this version cannot honour raises instead of being ignored."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    device_count: int = 1
    """Devices that the layers are split over; on a CPU, shares of its one memory."""
    precision: str = "Auto"
    """`Auto`, `FP32`, `BF16`, `FP16`, `INT8` or `INT4`, in any case; Auto follows the checkpoint where the device
    computes in it, INT8 and INT4 the model's recipe."""
    recipe: str = ""
    """Folder of the recipe for INT8 or INT4; empty looks in the model's `recipes/int8` or `recipes/int4`."""
    cache_bytes: int = 0
    """Size of the key/value page pool; 0 fits `max_running_requests` full sequences within a safe share of memory."""
    max_sequence_tokens: int = 0
    """Prompt plus output; 0 means what the checkpoint was trained for."""
    max_running_requests: int = 8
    step_tokens: int = 512
    """Token budget of one engine step."""
    sparse_activation: bool | str = False
    """Leave out feed-forward blocks that a generated token hardly needs: `Off`, `Balanced` or `Max`, in any case; True
    is Balanced. Needs a gate made by `windlass-runtime train-gate`, and a CPU."""
    gate: str = ""
    """Folder of the gate; empty looks in the model's `gates/int8`, `gates/int4` or `gates/stored`."""
    kv_cache_quantization: int = 16
    """Bits per element of stored keys and values: 4, 8, or 16 for the format of the arithmetic (FP32 on a CPU)."""
    enable_cache_reuse: bool = False
    """Whether prompts that begin alike share what was computed; the answers are the same either way."""

    def __post_init__(self) -> None:
        _choose(Device, "device", self.device)
        _choose(Precision, "precision", self.precision)
        for name in ("cache_bytes", "max_sequence_tokens"):
            _expect_at_least(name, getattr(self, name), 0)
        for name in ("device_count", "max_running_requests", "step_tokens"):
            _expect_at_least(name, getattr(self, name), 1)
        _choose_sparsity(self.sparse_activation)
        if self.kv_cache_quantization not in _CACHE_BITS:
            raise ValueError(f"kv_cache_quantization: expected 4, 8 or 16, found {self.kv_cache_quantization!r}")
        if type(self.enable_cache_reuse) is not bool:
            raise ValueError(f"enable_cache_reuse: expected True or False, found {self.enable_cache_reuse!r}")

    def to_launch_spec(self, model_uri: str) -> LaunchSpec:
        """The same choices in the words a replica is started with."""
        return LaunchSpec(
            model_uri=model_uri,
            served_name=model_uri,
            device=_choose(Device, "device", self.device),
            device_count=self.device_count,
            precision=_choose(Precision, "precision", self.precision),
            recipe=self.recipe,
            sparse_activation=_choose_sparsity(self.sparse_activation),
            gate=self.gate,
            cache_bytes=self.cache_bytes,
            cache_bits=_CACHE_BITS[self.kv_cache_quantization],
            cache_reuse=CacheReuse.PREFIX if self.enable_cache_reuse else CacheReuse.NONE,
            max_sequence_tokens=self.max_sequence_tokens,
            max_running_requests=self.max_running_requests,
            step_tokens=self.step_tokens,
        )


def _choose(kind: Any, name: str, value: str) -> Any:
    for member in kind:
        if str(value).lower() == member.value.lower():
            return member
    allowed = ", ".join(member.value for member in kind)
    raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")


def _choose_sparsity(value: bool | str) -> SparseActivation:
    if isinstance(value, bool):
        return SparseActivation.BALANCED if value else SparseActivation.OFF
    chosen: SparseActivation = _choose(SparseActivation, "sparse_activation", value)
    return chosen


def _expect_at_least(name: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, found {value!r}")
