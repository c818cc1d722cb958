"""What is in which page: fingerprints of finished pages, and how often each was found. O(1) per page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(slots=True, eq=False)
class Content:
    """A finished page: immutable from now on, except for what is counted here."""

    fingerprint: bytes
    depth: int
    """Pages before it in its sequence."""
    before: Content | None
    """The page before it; None for the first, and where that one is not known."""
    hits: int = 0
    grade_floor: int = 0
    """Highest class of a page behind this one: what others need to be reached is worth as much as they are."""


class PrefixIndex:
    """Finished pages by fingerprint, each fingerprint once."""

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._contents: dict[int, Content] = {}

    def __len__(self) -> int:
        return len(self._contents)

    def page_of(self, fingerprint: bytes) -> int | None:
        return self._pages.get(fingerprint)

    def content_of(self, page: int) -> Content | None:
        """None for a page that is not finished or not known."""
        return self._contents.get(page)

    def leading(self, fingerprints: Sequence[bytes]) -> list[int]:
        """The pages of the longest beginning that is wholly here."""
        pages = []
        for fingerprint in fingerprints:
            page = self._pages.get(fingerprint)
            if page is None:
                break
            pages.append(page)
        return pages

    def add(self, page: int, fingerprint: bytes, before: bytes | None, depth: int) -> None:
        """Record a page under a fingerprint that is not here yet; `before` is the one of the page before it."""
        previous = None if before is None else self._pages.get(before)
        self._pages[fingerprint] = page
        self._contents[page] = Content(fingerprint, depth, None if previous is None else self._contents[previous])

    def discard(self, page: int) -> None:
        """Forget what is in a page."""
        del self._pages[self._contents.pop(page).fingerprint]

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert len(self._pages) == len(self._contents), "a page or a fingerprint is known on one side only"
        for fingerprint, page in self._pages.items():
            assert self._contents[page].fingerprint == fingerprint, "a fingerprint leads to another page"
