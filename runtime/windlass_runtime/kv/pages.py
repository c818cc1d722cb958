"""Who owns which page of the key/value pool. Pure bookkeeping: the tensors behind the ids belong to a backend.

A page is free, or held by one or more owners; it returns to the pool when its last owner lets go. Every operation costs
O(1) per page.
"""

from __future__ import annotations

from collections.abc import Iterable

from windlass_runtime import errors


class PagesExhausted(errors.CapacityError):
    """Fewer pages are free than asked for; nothing was allocated."""


class PagePool:
    """Page ids 0 .. page_count - 1 with a reference count each."""

    def __init__(self, page_count: int) -> None:
        if page_count < 1:
            raise ValueError(f"page pool: expected at least 1 page, found {page_count}")
        self._references = [0] * page_count
        # A stack: the page freed last is used next, so its memory is likely still in a cache.
        self._free = list(range(page_count - 1, -1, -1))

    @property
    def page_count(self) -> int:
        return len(self._references)

    @property
    def free_count(self) -> int:
        return len(self._free)

    def references(self, page: int) -> int:
        """How many owners hold this page; 0 means free."""
        return self._references[page]

    def allocate(self, count: int) -> tuple[int, ...]:
        """Take `count` free pages, each with one owner. Raises PagesExhausted, and then takes none."""
        if count < 0:
            raise ValueError(f"page pool: expected a count of 0 or more, found {count}")
        if count > len(self._free):
            raise PagesExhausted(
                f"page pool exhausted: need {count} pages, {len(self._free)} free of {self.page_count}"
            )
        taken = tuple(self._free.pop() for _ in range(count))
        for page in taken:
            self._references[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """Add an owner to pages that are held already."""
        for page in pages:
            if self._references[page] == 0:
                raise ValueError(f"page {page}: expected a held page to share, found it free")
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop one owner of each page; pages without owners become free."""
        for page in pages:
            if self._references[page] == 0:
                raise ValueError(f"page {page}: expected a held page to release, found it free")
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)

    def check(self) -> None:
        """Assert the invariants; for tests, O(pages)."""
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert all(self._references[page] == 0 for page in self._free), "a free page has owners"
        held = sum(1 for count in self._references if count > 0)
        assert held + len(self._free) == self.page_count, "a page is neither free nor held"
        assert min(self._references) >= 0, "a page has fewer than no owners"
