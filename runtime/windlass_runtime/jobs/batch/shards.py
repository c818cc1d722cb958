"""Decide which worker computes which row. Pure: no clock, files or network.

A row belongs to the shard that its custom_id hashes to. A worker that is done with its own shard takes over rows of
slow ones, so that one bad node does not hold up the batch: a straggler's rows are then computed by whoever is first.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

_MULTIPLIER: Final = 2862933555777941757


def hash_id(custom_id: str, salt: str = "") -> int:
    """64 bits that are the same on every machine and in every version."""
    digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt.encode()).digest()
    return int.from_bytes(digest, "little")


def shard_of(custom_id: str, shards: int) -> int:
    """Shard of a row, by jump consistent hashing (Lamping and Veach, 2014).

    With one shard more only 1 row of `shards + 1` moves, so a batch that goes on with another number of workers
    keeps most of its work where it was.
    """
    key, shard, following = hash_id(custom_id), -1, 0
    while following < shards:
        shard = following
        key = (key * _MULTIPLIER + 1) % 2**64
        following = int((shard + 1) * (2**31 / ((key >> 33) + 1)))
    return shard


class Board:
    """What one worker knows of all rows: which are done, which it computes now, which comes next."""

    def __init__(self, ids: Sequence[str], shard: int, shards: int, *, window: int, quiet_s: float) -> None:
        """`window`: rows that a worker computes at once. `quiet_s`: silence after which those too are taken over."""
        self._shard, self._shards = shard, shards
        self._window, self._quiet_s = window, quiet_s
        self._ids = ids
        self._rows: dict[int, list[int]] = defaultdict(list)
        for number, custom_id in enumerate(ids):
            self._rows[shard_of(custom_id, shards)].append(number)
        self._home = {number: home for home, numbers in self._rows.items() for number in numbers}
        self._done = bytearray(len(ids))
        self._done_count = 0
        self._taken: set[int] = set()
        self._own = list(reversed(self._rows[shard]))
        """Own rows that were not begun, the next one last."""
        self._left = {home: len(numbers) for home, numbers in self._rows.items()}
        self._news_s: dict[int, float] = {}
        """When each begun shard was last heard of."""
        self._help: list[int] = []

    @property
    def own_rows(self) -> int:
        """Rows of this worker's shard."""
        return len(self._rows[self._shard])

    @property
    def own_done(self) -> int:
        """Those of them that are done, by whomever."""
        return self.own_rows - self._left.get(self._shard, 0)

    @property
    def complete(self) -> bool:
        """Whether every row of the batch is done."""
        return self._done_count == len(self._ids)

    @property
    def may_leave(self) -> bool:
        """Whether this worker should make room for one that has not begun its shard."""
        return not self._taken and not self._left.get(self._shard, 0) and not self._all_begun

    @property
    def _all_begun(self) -> bool:
        return all(home in self._news_s or not left for home, left in self._left.items())

    def is_done(self, number: int) -> bool:
        """Whether a row has its answer."""
        return bool(self._done[number])

    def begin(self, shard: int, now_s: float) -> None:
        """A worker of the shard is at work."""
        self._news_s.setdefault(shard, now_s)

    def settle(self, number: int, now_s: float) -> bool:
        """A row has its answer; returns False when it had one before."""
        self._taken.discard(number)
        if self._done[number]:
            return False
        self._done[number] = 1
        self._done_count += 1
        home = self._home[number]
        self._left[home] -= 1
        self._news_s[home] = now_s
        return True

    def take(self) -> int | None:
        """The next row to compute, which the caller settles; None: nothing to do now."""
        while self._own:
            number = self._own.pop()
            if not self._done[number]:
                return self._take(number)
        if not self._all_begun:
            return None
        while self._help:
            number = self._help.pop()
            if not self._done[number] and number not in self._taken:
                return self._take(number)
        return None

    def look_for_stragglers(self, now_s: float) -> None:
        """Choose the rows to help with from what is known now; call after every look at the others' work."""
        while self._own and self._done[self._own[-1]]:
            self._own.pop()
        if self._own or not self._all_begun:
            return
        behind = sorted((home for home, left in self._left.items() if left), key=lambda home: self._left[home])
        # Taken from the end of the list: the shard with most rows left comes first.
        self._help = [number for home in behind for number in self._offered(home, now_s)]

    def _offered(self, home: int, now_s: float) -> list[int]:
        """Rows of a shard that its own worker is probably not computing, in an order that differs by helper."""
        left = [number for number in self._rows[home] if not self._done[number] and number not in self._taken]
        quiet = now_s - self._news_s.get(home, now_s) >= self._quiet_s
        offered = left if quiet else left[self._window :]
        return sorted(offered, key=lambda number: hash_id(self._ids[number], f"{self._shard}"))

    def _take(self, number: int) -> int:
        self._taken.add(number)
        return number
