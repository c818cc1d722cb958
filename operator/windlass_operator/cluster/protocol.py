"""The seam between deciding and the world, with two implementations: `kubernetes` (objects) and `local` (processes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from windlass_operator.domain.snapshot import Key, Snapshot

Manifest = dict[str, Any]
"""The JSON form of one Kubernetes object: apiVersion, kind, metadata and the rest."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply changed; empty when the world matched already."""

    written: tuple[str, ...] = ()
    """`kind/name` of each object created or changed."""
    pruned: tuple[str, ...] = ()
    """`kind/name` of each child deleted because it is no longer wanted."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """`kind/name` -> why the cluster refused it; the others were still applied."""


class Cluster(Protocol):
    """Observe, apply, report. All methods are safe to repeat."""

    async def observe(self, key: Key) -> Snapshot:
        """Return the newest picture, at least as new as the last apply of `key`.

        Raises ClusterUnavailable while the caches are not filled.
        """
        ...

    async def apply(self, owner: Key, children: Sequence[Manifest]) -> Applied:
        """Make the owner's children equal to `children`: write those that differ, delete those no longer listed.

        Writes nothing when nothing differs. Raises RetryLater (busy, conflict) and ClusterUnavailable; a refusal of a
        single object is reported in `problems`, not raised.
        """
        ...

    async def report(self, owner: Key, status: Manifest) -> bool:
        """Write the owner's status if it differs from what is stored; return whether it was written.

        Raises RetryLater and ClusterUnavailable. An owner that is gone is not an error.
        """
        ...
