"""What one replica is told at start. Rendered by the control plane, read by `windlass-runtime serve`.

The JSON form is the contract between an operator and a runtime of different versions: readers ignore keys they do not
know and fill in defaults for keys they miss, so upgrades and rollbacks may skew. Standard library only.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1
"""Raised only when an older reader would misunderstand a newer file."""

FILE_NAME: Final = "launch-spec.json"
"""Key in the ConfigMap and name of the mounted file."""

MOUNT_PATH: Final = "/etc/windlass"
"""Folder where a pod finds FILE_NAME."""


class Precision(enum.StrEnum):
    """Number format of weights and arithmetic in one replica."""

    AUTO = "Auto"
    """The checkpoint's own format where a GPU computes in it, else FP16; on a CPU FP32 over weights as stored."""
    FP32 = "FP32"
    BF16 = "BF16"
    FP16 = "FP16"
    INT8 = "INT8"
    """Weights of attention and feed-forward in 8 bits, embedding in 4, by the model's recipe; arithmetic as in Auto."""
    INT4 = "INT4"
    """The same with feed-forward weights in 4 bits."""


class SparseActivation(enum.StrEnum):
    """How much of the feed-forward layers a generated token may leave out."""

    OFF = "Off"
    BALANCED = "Balanced"
    """As much as costs at most 1 % of perplexity, measured when the model's gate was made."""
    MAX = "Max"
    """As much as costs at most 3 %."""


INTEGERS: Final = frozenset({Precision.INT8, Precision.INT4})
"""Precisions that keep weights in integers."""


class Device(enum.StrEnum):
    """Where a replica computes."""

    CPU = "cpu"
    CUDA = "cuda"


class CacheReuse(enum.StrEnum):
    """Which keys and values of earlier requests a replica uses again."""

    NONE = ""
    """Every request computes its own."""
    PREFIX = "Prefix"
    """Beginnings that a tenant's requests share token by token; answers are the same either way."""


CACHE_BITS: Final = (0, 4, 8)
"""What LaunchSpec.cache_bits may be."""


class LaunchSpecError(ValueError):
    """The text is no launch spec this version can obey; names the key, what was found and what was expected."""


@dataclasses.dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything a replica needs to know that is not the checkpoint itself."""

    model_uri: str
    """`file:///path`, `hf://organisation/name@revision`. Mounted sources (`pvc://`, `oci://`) arrive as `file://`."""
    served_name: str
    """The `model` value of OpenAI requests."""
    namespace: str = "default"
    service: str = "local"
    tenant: str = ""
    """Owner of every request to this replica; empty when the namespace belongs to no tenant."""
    tenant_key_file: str = ""
    """File with the key that gateways share, for replicas that several tenants use; empty: every request is `tenant`'s.
    """
    tenant_weights: str = ""
    """Shares of tenants relative to each other, as `team-a=3,team-b=0.5`; 1 for those not named."""
    device: Device = Device.CPU
    device_count: int = 1
    """Devices that the layers are split over, the first ones there are. On a CPU, a rehearsal within its one memory."""
    precision: Precision = Precision.AUTO
    recipe: str = ""
    """Folder of the recipe for a precision of integers; empty looks for one in the model's folder."""
    engine_store: str = ""
    """Folder of TensorRT plans: the replica begins with torch and goes on with a plan once it has or has built one."""
    sparse_activation: SparseActivation = SparseActivation.OFF
    """Needs a gate; on a CPU only."""
    gate: str = ""
    """Folder of the gate for sparse activation; empty looks for one in the model's folder."""
    cache_bytes: int = 0
    """Size of the key/value page pool; 0 fits `max_running_requests` full sequences, within a safe share of memory."""
    cache_bits: int = 0
    """Bits per element of stored keys and values, 4 or 8; 0 keeps them in the format of the arithmetic."""
    cache_reuse: CacheReuse = CacheReuse.NONE
    max_sequence_tokens: int = 0
    """Prompt plus output per request, in tokens; 0 means what the checkpoint was trained for."""
    max_running_requests: int = 64
    max_queued_requests: int = 256
    """Requests waiting beyond those running; one more is answered 429 with Retry-After."""
    step_tokens: int = 512
    """Token budget of one engine step; longer prompts are prefilled in chunks of it."""
    drain_timeout_s: float = 60.0
    """Seconds to finish running requests after SIGTERM."""
    host: str = "0.0.0.0"
    port: int = 8000

    def to_json(self) -> str:
        """Render with sorted keys, so that equal specs have equal bytes (and equal config hashes)."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _OMITTED or getattr(self, field.name) != field.default
        }
        return json.dumps({"version": VERSION, **values}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LaunchSpec:
        """Parse; unknown keys are ignored. Raises LaunchSpecError."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as exc:
            raise LaunchSpecError(f"launch spec: expected JSON, found line {exc.lineno}: {exc.msg}") from exc
        if not isinstance(data, dict):
            raise LaunchSpecError(f"launch spec: expected an object, found {type(data).__name__}")
        version = data.get("version")
        if version != VERSION:
            raise LaunchSpecError(f"launch spec: version: expected {VERSION}, found {version!r}")
        fields = [field for field in dataclasses.fields(cls) if field.name in data or _required(field)]
        spec = cls(**{field.name: _parse(field, data) for field in fields})
        if spec.cache_bits not in CACHE_BITS:
            raise LaunchSpecError(f"launch spec: cache_bits: expected 0, 4 or 8, found {spec.cache_bits}")
        return spec


_OMITTED: Final = frozenset(
    {
        "cache_bits",
        "cache_reuse",
        "device_count",
        "engine_store",
        "gate",
        "recipe",
        "sparse_activation",
        "tenant_key_file",
        "tenant_weights",
    }
)
"""Left out while they have their defaults: an operator that learnt a field must not restart replicas without it."""
_SCALARS: Final[Mapping[str, type]] = {"str": str, "int": int, "float": float}
_ENUMS: Final[Mapping[str, type[enum.StrEnum]]] = {
    "CacheReuse": CacheReuse,
    "Device": Device,
    "Precision": Precision,
    "SparseActivation": SparseActivation,
}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _parse(field: dataclasses.Field[Any], data: Mapping[str, Any]) -> Any:
    if field.name not in data:
        raise LaunchSpecError(f"launch spec: {field.name}: required, found nothing")
    value, kind = data[field.name], str(field.type)
    if kind in _ENUMS:
        allowed = [member.value for member in _ENUMS[kind]]
        if value not in allowed:
            raise LaunchSpecError(f"launch spec: {field.name}: expected one of {', '.join(allowed)}, found {value!r}")
        return _ENUMS[kind](value)
    expected = _SCALARS[kind]
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise LaunchSpecError(f"launch spec: {field.name}: expected {kind}, found {value!r}")
    if isinstance(value, int | float) and not value >= 0:  # so phrased that NaN fails too
        raise LaunchSpecError(f"launch spec: {field.name}: expected 0 or more, found {value!r}")
    return value
