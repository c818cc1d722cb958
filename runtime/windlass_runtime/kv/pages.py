"""Who owns which page of the key/value pool, and which finished pages may be found again. Pure bookkeeping: the tensors
behind the ids belong to a backend.

A page is free, held by one or more owners, or kept: held by nobody, but finished and worth finding. Kept pages count as
free, for an allocation takes them when nothing else is left. Whose kept pages go is decided by level, a tenant's pages
over its weight: those of the highest level first, whoever asks. So tenants borrow what others leave, and a tenant below
its share loses nothing to one above. Every operation costs O(1) per page, and one look at each tenant for a page taken
from the kept ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from windlass_runtime import errors
from windlass_runtime.kv.eviction import Shelf, grade_of
from windlass_runtime.kv.prefix_index import PrefixIndex


class PagesExhausted(errors.CapacityError):
    """Fewer pages are free than asked for; nothing was allocated."""


class PagePool:
    """Page ids 0 .. page_count - 1 with a reference count each."""

    def __init__(
        self, page_count: int, *, weights: Mapping[str, float] | None = None, costly_depth: int = 1024
    ) -> None:
        """weights: shares of tenants relative to each other, 1 for those not named; costly_depth: see `grade_of`."""
        if page_count < 1:
            raise ValueError(f"page pool: expected at least 1 page, found {page_count}")
        self._references = [0] * page_count
        # A stack: the page freed last is used next, so its memory is likely still in a cache.
        self._free = list(range(page_count - 1, -1, -1))
        self._tenants = [""] * page_count
        self._weights = dict(weights or {})
        self._costly_depth = costly_depth
        self._index = PrefixIndex()
        self._shelves: dict[str, Shelf] = {}
        self._kept = 0
        self._owned: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        """Kept pages given up so far, by the tenant that had filled them."""

    @property
    def page_count(self) -> int:
        return len(self._references)

    @property
    def free_count(self) -> int:
        """Pages that an allocation can have: those that nobody holds."""
        return len(self._free) + self._kept

    @property
    def kept_count(self) -> int:
        """Of the free ones, those with a content that may be found again."""
        return self._kept

    def references(self, page: int) -> int:
        """How many owners hold this page."""
        return self._references[page]

    @property
    def owned(self) -> Mapping[str, int]:
        """Pages by the tenant that allocated them and that are held or kept."""
        return self._owned

    def pages_of(self, tenant: str) -> int:
        """Pages that a tenant allocated and that are held or kept."""
        return self._owned[tenant]

    def allocate(self, count: int, tenant: str = "") -> tuple[int, ...]:
        """Take `count` free pages, each with one owner. Raises PagesExhausted, and then takes none."""
        if count < 0:
            raise ValueError(f"page pool: expected a count of 0 or more, found {count}")
        if count > self.free_count:
            raise PagesExhausted(
                f"page pool exhausted: need {count} pages, {self.free_count} free of {self.page_count}"
            )
        self._owned[tenant] += count  # before choosing whose pages go: what is asked for counts
        while len(self._free) < count:
            self._evict()
        taken = tuple([self._free.pop() for _ in range(count)])
        for page in taken:
            self._references[page] = 1
            self._tenants[page] = tenant
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """Add an owner to pages that are held already."""
        for page in pages:
            if self._references[page] == 0:
                raise ValueError(f"page {page}: expected a held page to share, found it free")
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Drop one owner of each page, given in the order of their sequence; those without owners are kept or free."""
        # Backwards: what lies deeper in a sequence is of no use without what lies before it, so it must go first.
        for page in reversed(pages):
            if self._references[page] == 0:
                raise ValueError(f"page {page}: expected a held page to release, found it free")
            self._references[page] -= 1
            if self._references[page] == 0:
                self._put_down(page)

    def find(self, fingerprints: Sequence[bytes]) -> int:
        """How many pages `take` would give."""
        return len(self._index.leading(fingerprints))

    def take(self, fingerprints: Sequence[bytes]) -> tuple[int, ...]:
        """Own the pages of the longest beginning that is here, each with one more owner."""
        pages = tuple(self._index.leading(fingerprints))
        for page in pages:
            if self._references[page] == 0:
                self._unkeep(page)
            self._references[page] += 1
            content = self._index.content_of(page)
            assert content is not None
            content.hits += 1
        return pages

    def publish(self, page: int, fingerprint: bytes, before: bytes | None, depth: int) -> int:
        """Let a held page that is finished be found from now on.

        before  fingerprint of the page before it in its sequence; None for the first
        depth   pages before it in its sequence
        returns the page to use in its place: itself, or the one found under this fingerprint already, which gains the
                owner that `page` loses; the two have the same content
        """
        found = self._index.page_of(fingerprint)
        if found is None:
            self._index.add(page, fingerprint, before, depth)
        elif found != page:
            if self._references[found] == 0:
                self._unkeep(found)
            self._references[found] += 1
            self.release((page,))
            return found
        return page

    def check(self) -> None:
        """Assert the invariants; for tests, O(pages)."""
        self._index.check()
        kept = {page for page in range(self.page_count) if any(page in shelf for shelf in self._shelves.values())}
        assert len(kept) == self._kept == sum(map(len, self._shelves.values())), "kept pages are miscounted"
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert not kept & set(self._free), "a page is free and kept"
        assert all(self._references[page] == 0 for page in [*self._free, *kept]), "a free page has owners"
        assert all(self._index.content_of(page) is None for page in self._free), "a free page can be found"
        assert all(self._index.content_of(page) is not None for page in kept), "a kept page cannot be found"
        held = sum(1 for count in self._references if count > 0)
        assert held + len(self._free) + self._kept == self.page_count, "a page is neither free, kept nor held"
        assert min(self._references) >= 0, "a page has fewer than no owners"
        owned = Counter(self._tenants[page] for page in range(self.page_count) if page not in set(self._free))
        assert owned == +self._owned, "a tenant's pages are miscounted"

    def _put_down(self, page: int) -> None:
        """Free a page without owners; keep it if it is finished."""
        content, tenant = self._index.content_of(page), self._tenants[page]
        if content is None:
            self._owned[tenant] -= 1
            self._free.append(page)
            return
        grade = max(content.grade_floor, grade_of(content.depth, content.hits, self._costly_depth))
        if content.before is not None:
            content.before.grade_floor = max(content.before.grade_floor, grade)
        self._shelves.setdefault(tenant, Shelf()).put(page, grade)
        self._kept += 1

    def _unkeep(self, page: int) -> None:
        self._shelves[self._tenants[page]].remove(page)
        self._kept -= 1

    def _evict(self) -> None:
        tenant = max(
            (tenant for tenant, shelf in self._shelves.items() if len(shelf)),
            key=lambda tenant: self._owned[tenant] / self._weights.get(tenant, 1.0),
        )
        shelf = self._shelves[tenant]
        page = shelf.pop()
        self._index.discard(page)
        self._kept -= 1
        self._owned[tenant] -= 1
        self.evictions[tenant] += 1
        self._free.append(page)
