"""Which of the pages that nobody holds goes first: the one that is worth least, and of equals the one kept longest.

Worth is recompute cost times likelihood of reuse per byte; pages are of one size. The order is GreedyDual's: a page put
on the shelf is due at `clock + worth`, the page due first goes and moves the clock to its due, so that worth fades with
time unless a hit renews it. Worth comes in classes, and within a class dues rise with time, so each class is a line and
every operation looks at the heads of a fixed number of lines: O(1).
"""

from __future__ import annotations

import math
from typing import Final

CLASSES: Final = 16
"""Classes of worth, each 1.4 times the one before; the last is worth about 180 pages nobody came back for."""
_WORTH: Final = tuple(2 ** (grade / 2) for grade in range(CLASSES))


def grade_of(depth: int, hits: int, costly_depth: int) -> int:
    """The class of a page.

    depth         pages before it in its sequence: attending them is part of computing it again
    hits          how often it was found, so far
    costly_depth  depth at which attention costs as much as everything else
    """
    worth = (1 + depth / costly_depth) * (1 + hits)
    return min(CLASSES - 1, round(2 * math.log2(worth)))


class Shelf:
    """Pages of one tenant that nobody holds."""

    def __init__(self) -> None:
        # Python's dictionaries keep the order of insertion; a page's value is its due.
        self._lines: tuple[dict[int, float], ...] = tuple({} for _ in range(CLASSES))
        self._grades: dict[int, int] = {}
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._grades)

    def __contains__(self, page: object) -> bool:
        return page in self._grades

    def put(self, page: int, grade: int) -> None:
        """Keep a page of a class."""
        self._grades[page] = grade
        self._lines[grade][page] = self._clock + _WORTH[grade]

    def remove(self, page: int) -> None:
        """Take a page that is wanted again."""
        del self._lines[self._grades.pop(page)][page]

    def pop(self) -> int:
        """Give up the page that is due first."""
        heads = [(next(iter(line.values())), grade) for grade, line in enumerate(self._lines) if line]
        self._clock, grade = min(heads)
        page = next(iter(self._lines[grade]))
        self.remove(page)
        return page
