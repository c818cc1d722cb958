"""The manifest beside a plan: what it was made of, what it is for, and how to know that it is whole.

TensorRT's plans are not reproducible byte for byte, so a plan is known by its inputs: their digest is the fingerprint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from windlass_runtime.checkpoint.json_fields import Fields
from windlass_runtime.engine.graph import FromModel, Graph, value_bytes
from windlass_runtime.errors import CheckpointError, EngineError

VERSION: Final = 1
"""Raised when an older reader would misunderstand a newer manifest."""
FILE_NAME: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that decides what a plan computes and where it runs."""

    backend: str
    """`tensorrt` or `tensorrt-rtx`."""
    backend_version: str
    targets: tuple[str, ...]
    """GPUs, such as sm_89."""
    model_digest: str
    architecture: str
    precision: str
    """INT8, INT4, FP16 or BF16."""
    recipe_digest: str
    """sha256 of recipe.json; `data-free` where weights were rounded without one, empty for float weights."""
    arithmetic: str
    """FP16 or BF16."""
    capacity: int
    decode_rows: int
    prefill_rows: int
    prefill_tokens: int
    network_version: int
    plugins: tuple[str, ...] = ()
    """Names with versions."""

    @property
    def fingerprint(self) -> str:
        """The plan's name in a store: 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an executor must know besides the plan."""

    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    layers: int
    key_value_heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One plan."""

    identity: Identity
    model: ModelFacts
    plan_file: str
    plan_bytes: int
    plan_sha256: str
    weight_bytes: int
    """Of the constants in the network."""
    precision_table: dict[str, dict[str, int]]
    """Bytes by part of the model and format."""
    quality: dict[str, Any] | None
    """As the recipe measured it; None where nobody did."""
    build: dict[str, Any]
    """How long and how large the build was; of no consequence to the plan."""

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    def to_json(self) -> str:
        """Sorted, with the fingerprint for readers."""
        values = dataclasses.asdict(self) | {"version": VERSION, "fingerprint": self.fingerprint}
        return json.dumps(values, indent=1, sort_keys=True) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """Read and check. Raises EngineError naming `where` and the field."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise EngineError(f"{where}: expected an object, found {type(data).__name__}")
        fields = Fields(data, where)
        if fields.raw("version") != VERSION:
            raise EngineError(f"{where}: version: expected {VERSION}, found {fields.raw('version')!r}; build again")
        manifest = _parse(fields)
    except (CheckpointError, ValueError, TypeError, KeyError) as exc:
        raise EngineError(f"{where}: expected a manifest, found an entry that is none: {exc}") from exc
    if fields.raw("fingerprint") != manifest.fingerprint:
        raise EngineError(
            f"{where}: fingerprint: expected {manifest.fingerprint} from the inputs, found "
            f"{fields.raw('fingerprint')!r}; the manifest was altered: build again"
        )
    return manifest


def _parse(fields: Fields) -> Manifest:
    identity, model = dict(fields.raw("identity")), dict(fields.raw("model"))
    for name in ("targets", "plugins"):
        identity[name] = tuple(str(item) for item in identity[name])
    model["eos_token_ids"] = tuple(int(item) for item in model["eos_token_ids"])
    return Manifest(
        identity=Identity(**identity),
        model=ModelFacts(**model),
        plan_file=_plain_name(fields.text("plan_file", "")),
        plan_bytes=int(fields.raw("plan_bytes")),
        plan_sha256=fields.text("plan_sha256", ""),
        weight_bytes=int(fields.raw("weight_bytes")),
        precision_table={str(part): dict(sizes) for part, sizes in dict(fields.raw("precision_table")).items()},
        quality=None if fields.raw("quality") is None else dict(fields.raw("quality")),
        build=dict(fields.raw("build")),
    )


def _plain_name(name: str) -> str:
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"plan_file: expected a plain file name, found {name!r}")
    return name


_PARTS: Final[Mapping[str, str]] = {
    "norm": "norms",
    "self_attn": "attention",
    "mlp": "feedForward",
    "lm_head": "head",
    "embed_tokens": "embedding",
}
"""By what stands in a tensor's name; the first that fits."""


def tabulate_precision(graph: Graph) -> dict[str, dict[str, int]]:
    """Bytes of a graph's weights by part and format, scales apart."""
    table: dict[str, dict[str, int]] = {}
    for node in graph.constants:
        source = node.op.source  # type: ignore[union-attr]
        if not isinstance(source, FromModel):
            continue
        part = next((part for word, part in _PARTS.items() if word in source.tensor), "other")
        if part == "embedding" and node.output.name.startswith("head."):
            part = "head"
        name = "scales" if source.field == "scales" else str(node.output.dtype)
        sizes = table.setdefault(part, {})
        sizes[name] = sizes.get(name, 0) + value_bytes(node.output)
    return table
