"""Choose a replica: the one with the fewest requests in flight through this gateway; ties go to the one that waited
longest.

A replica that refuses connections rests for a short time that doubles with each refusal. Resting is a preference, not
a ban:
when every replica rests, the one due first is tried, because trying beats failing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Final

from windlass_contract.endpoints import Replica

FIRST_REST_S: Final = 0.5
LONGEST_REST_S: Final = 10.0


@dataclasses.dataclass(slots=True)
class _Record:
    in_flight: int = 0
    last_turn: int = 0
    refusals: int = 0
    rests_until_s: float = 0.0


class Picker:
    """Load and rest of every replica this gateway has used. One per gateway, used from its event loop only."""

    def __init__(self) -> None:
        self._records: dict[Replica, _Record] = {}
        self._turn = 0

    def pick(self, replicas: Iterable[Replica], tried: Collection[Replica], now_s: float) -> Replica | None:
        """Return the best replica not yet tried, or None. Does not count it: call `start`."""
        candidates = [replica for replica in replicas if replica not in tried]
        if not candidates:
            return None
        rested = [replica for replica in candidates if self._record(replica).rests_until_s <= now_s]
        if not rested:
            return min(candidates, key=lambda replica: self._record(replica).rests_until_s)
        return min(rested, key=self._load)

    def start(self, replica: Replica) -> None:
        """Count one request as in flight."""
        self._turn += 1
        record = self._records.setdefault(replica, _Record())
        record.in_flight += 1
        record.last_turn = self._turn

    def finish(self, replica: Replica) -> None:
        """Undo one `start`."""
        self._records[replica].in_flight -= 1

    def refused(self, replica: Replica, now_s: float) -> float:
        """Note that the replica took no connection; return how many seconds it rests."""
        record = self._records.setdefault(replica, _Record())
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(record.refusals, 16))
        record.refusals += 1
        record.rests_until_s = now_s + rest_s
        return rest_s

    def answered(self, replica: Replica) -> None:
        """Note that the replica answered; its rests start short again."""
        record = self._records.get(replica)
        if record is not None and record.refusals:
            record.refusals, record.rests_until_s = 0, 0.0

    def keep_only(self, replicas: Collection[Replica]) -> None:
        """Forget replicas that left the routing table, once nothing is in flight on them."""
        self._records = {
            replica: record for replica, record in self._records.items() if replica in replicas or record.in_flight
        }

    def in_flight(self, replica: Replica) -> int:
        """Requests now running on the replica through this gateway."""
        return self._record(replica).in_flight

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert all(record.in_flight >= 0 for record in self._records.values())
        assert all(record.refusals > 0 or record.rests_until_s == 0.0 for record in self._records.values())

    def _record(self, replica: Replica) -> _Record:
        return self._records.get(replica, _NOTHING)

    def _load(self, replica: Replica) -> tuple[int, int]:
        record = self._record(replica)
        return record.in_flight, record.last_turn


_NOTHING: Final = _Record()
