"""Compare JSON values field by field, for people who want to see what would change. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from windlass_operator.cluster.kubernetes_compare import divergences
from windlass_operator.cluster.kubernetes_kinds import APPLIED_HASH, OWNER, OWNER_UID
from windlass_operator.cluster.protocol import Manifest
from windlass_operator.domain import labels

Change = dict[str, Any]
"""`path`, and `before` and `after` where the field exists."""

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
BOOKKEEPING: Final = frozenset({APPLIED_HASH, OWNER, OWNER_UID, labels.TEMPLATE, LAST_APPLIED})
"""Marks that follow from the rest of the object."""
_ABSENT: Final = object()


def changes(before: Any, after: Any, path: str = "") -> list[Change]:
    """Every field that differs; lists of one length item by item, others as a whole."""
    return list(_changes(before, after, path))


def object_changes(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[Change]:
    """What an edit changes of an object: its labels, its annotations and its spec."""
    return list(_changes(_essence(before or {}), _essence(after), ""))


def child_changes(live: Manifest | None, wanted: Manifest, earlier: Manifest | None) -> list[Change]:
    """What an apply changes of a child. Of the live object only wanted fields count, for servers and others add theirs;
    `earlier` is what is wanted now, to tell which fields the next apply drops.
    """
    if live is None:
        return []
    changed = [
        _change(one.path, _ABSENT if one.found is None else one.found, one.wanted)
        for one in divergences(wanted, live)
        if not any(mark in one.path for mark in BOOKKEEPING)
    ]
    kept = _leaves(wanted)
    dropped = [(path, value) for path, value in _leaves(earlier or {}).items() if path not in kept]
    known = {change["path"] for change in changed}
    return changed + [
        _change(path, value, _ABSENT) for path, value in dropped if not any(path.startswith(one) for one in known)
    ]


def without_removed(result: Manifest, last_applied: Mapping[str, Any], wanted: Mapping[str, Any]) -> Manifest:
    """What `kubectl apply` without `--server-side` makes of it: fields that the last file had and this one lacks go."""
    return {**result, "spec": _without(result.get("spec"), last_applied.get("spec"), wanted.get("spec"))}


def _without(value: Any, last: Any, wanted: Any) -> Any:
    if not (isinstance(value, dict) and isinstance(last, dict) and isinstance(wanted, dict)):
        return value
    return {
        key: _without(item, last.get(key), wanted.get(key))
        for key, item in value.items()
        if key in wanted or key not in last
    }


def _changes(before: Any, after: Any, path: str) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else str(key)
            yield from _changes(before.get(key, _ABSENT), after.get(key, _ABSENT), inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _changes(one, other, f"{path}[{index}]")
    elif before is _ABSENT or after is _ABSENT or before != after:
        yield _change(path, before, after)


def _change(path: str, before: Any, after: Any) -> Change:
    sides = {"before": before, "after": after}
    return {"path": path, **{side: value for side, value in sides.items() if value is not _ABSENT}}


def _essence(manifest: Mapping[str, Any]) -> dict[str, Any]:
    metadata = manifest.get("metadata") or {}
    kept = {
        part: {key: value for key, value in (metadata.get(part) or {}).items() if key not in BOOKKEEPING}
        for part in ("labels", "annotations")
    }
    return {
        **({"metadata": {part: value for part, value in kept.items() if value}} if any(kept.values()) else {}),
        **({"spec": manifest["spec"]} if manifest.get("spec") else {}),
    }


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every plain value of a manifest by its path; list items go by position."""
    pairs: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping):
        pairs = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, list):
        pairs = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return {path: value}
    return {inner: leaf for where, item in pairs for inner, leaf in _leaves(item, where).items()}
