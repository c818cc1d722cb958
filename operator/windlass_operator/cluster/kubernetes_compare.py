"""Tell whether a live object still holds what we want, without being fooled by what servers add. Pure.

Two tests together: the hash of the wanted object is stored in an annotation, so a wish that changed is noticed even
where it drops a field; and every wanted field is looked up in the live object, so an edit by someone else is noticed
and repaired. Fields that we never set (server defaults, injected sidecars, the autoscaler's replica count) play no
part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from windlass_operator.cluster.kubernetes_kinds import APPLIED_HASH

ITEM_KEYS: Final = ("uid", "containerPort", "port", "mountPath", "topologyKey", "ip", "type", "name", "key")
"""Fields that tell list items apart, tried in this order: the merge keys of the lists we write."""
POSITIONAL: Final = frozenset(
    {"args", "command", "rules", "subjects", "tolerations", "ingress", "egress", "from", "to", "metrics", "policies"}
)
"""Lists that server-side apply replaces as a whole: order and length count."""
QUANTITIES: Final = frozenset(
    {"requests", "limits", "hard", "default", "defaultRequest", "max", "min", "maxLimitRequestRatio"}
)
"""Mappings whose values are quantities."""
QUANTITY_FIELDS: Final = frozenset({"sizeLimit", "averageValue", "storage"})

_SUFFIXES: Final[Mapping[str, Decimal]] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


@dataclass(frozen=True, slots=True)
class Divergence:
    """One field of a live object that is not as it should be."""

    path: str
    wanted: Any
    found: Any

    def __str__(self) -> str:
        if isinstance(self.wanted, list) and isinstance(self.found, list):
            return f"{self.path}: expected {len(self.wanted)} items, found {len(self.found)}"
        return f"{self.path}: expected {_brief(self.wanted)}, found {_brief(self.found)}"


def hash_manifest(manifest: Mapping[str, Any]) -> str:
    """Return a short digest of an object, independent of key order and of the hash annotation itself."""
    plain, metadata = dict(manifest), manifest.get("metadata", {})
    if APPLIED_HASH in metadata.get("annotations", ()):
        others = {key: text for key, text in metadata["annotations"].items() if key != APPLIED_HASH}
        plain["metadata"] = {**metadata, "annotations": others}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def applied_hash(live: Mapping[str, Any]) -> str:
    """Return the hash of what we applied last; empty when we never did."""
    annotations = live.get("metadata", {}).get("annotations") or {}
    return str(annotations.get(APPLIED_HASH, ""))


def differences(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `path: expected X, found Y` for every wanted field that the live object does not hold."""
    return tuple(str(one) for one in divergences(wanted, live))


def divergences(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> tuple[Divergence, ...]:
    """Return every wanted field that the live object does not hold."""
    return tuple(_compare(wanted, live, ""))


def merge_patch(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the smallest JSON merge patch that turns `stored` into `wanted`; empty when they are equal."""
    patch: dict[str, Any] = {key: None for key in stored if key not in wanted}
    for key, value in wanted.items():
        if key not in stored:
            patch[key] = value
        elif isinstance(value, Mapping) and isinstance(stored[key], Mapping):
            inner = merge_patch(stored[key], value)
            if inner:
                patch[key] = inner
        elif stored[key] != value:
            patch[key] = value
    return patch


def parse_quantity(text: object) -> Decimal | None:
    """Return the number behind a Kubernetes quantity; None when it is none."""
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        return None
    number = str(text)
    suffix = next((end for end in (number[-2:], number[-1:]) if end in _SUFFIXES and end), "")
    try:
        value = Decimal(number.removesuffix(suffix))
    except InvalidOperation:
        return None
    return value * _SUFFIXES[suffix] if value.is_finite() else None


def _compare(wanted: Any, live: Any, path: str, quantities: bool = False) -> Iterator[Divergence]:
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        for key, value in wanted.items():
            yield from _compare(
                value,
                live.get(key),
                f"{path}.{key}" if path else key,
                quantities or key in QUANTITIES | QUANTITY_FIELDS,
            )
    elif isinstance(wanted, list) and isinstance(live, list):
        yield from _compare_lists(wanted, live, path)
    elif wanted != live and not _is_omitted(wanted, live) and not (quantities and _same_quantity(wanted, live)):
        yield Divergence(path, wanted, live)


def _compare_lists(wanted: Sequence[Any], live: Sequence[Any], path: str) -> Iterator[Divergence]:
    key = None if path.rpartition(".")[2] in POSITIONAL else _item_key(wanted)
    if key is None:
        if len(wanted) != len(live):
            yield Divergence(path, list(wanted), list(live))
            return
        for index, (item, found) in enumerate(zip(wanted, live, strict=True)):
            yield from _compare(item, found, f"{path}[{index}]")
        return
    by_key = {found.get(key): found for found in live if isinstance(found, Mapping)}
    for item in wanted:
        yield from _compare(item, by_key.get(item[key]), f"{path}[{item[key]}]")


def _item_key(items: Sequence[Any]) -> str | None:
    """Return the field that names every item uniquely, None for lists of scalars and for anonymous items."""
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    for key in ITEM_KEYS:
        values = [item.get(key) for item in items]
        if (
            None not in values
            and all(isinstance(value, str | int) for value in values)
            and len(set(values)) == len(values)
        ):
            return key
    return None


def _is_omitted(wanted: Any, live: Any) -> bool:
    """Servers drop empty values on encoding, so an empty wish is met by absence."""
    return live is None and (wanted is None or wanted is False or wanted in ("", 0, [], {}))


def _same_quantity(wanted: Any, live: Any) -> bool:
    one, other = parse_quantity(wanted), parse_quantity(live)
    return one is not None and one == other


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
