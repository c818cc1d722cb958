"""Finished pages: found by their own history and scope only, never overwritten while findable, given up fairly."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from windlass_runtime.kv.eviction import CLASSES, Shelf, grade_of
from windlass_runtime.kv.fingerprints import PrefixChain, derive_scope
from windlass_runtime.kv.pages import PagePool

KEY = b"a secret of the server's own"
PAGE = 4


def fingerprints(tokens: list[int], tenant: str = "a") -> list[bytes]:
    return PrefixChain(derive_scope(KEY, tenant), PAGE).first(tokens, len(tokens) // PAGE)


def compute(pool: PagePool, tokens: list[int], tenant: str = "a") -> tuple[int, ...]:
    """What a sequence does that finds nothing: hold pages and publish them."""
    names = fingerprints(tokens, tenant)
    return tuple(
        pool.publish(page, names[i], names[i - 1] if i else None, i)
        for i, page in enumerate(pool.allocate(len(names), tenant))
    )


def test_a_finished_page_is_found_by_the_same_beginning_after_its_owner_left():
    pool = PagePool(8)
    first = compute(pool, [1, 2, 3, 4, 5, 6, 7, 8])
    pool.release(first)

    found = pool.take(fingerprints([1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]))

    assert found == first
    assert pool.free_count == 6


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(fingerprints([1, 2, 3, 9]), id="other tokens"),
        pytest.param(fingerprints([0, 0, 0, 0, 1, 2, 3, 4])[1:], id="the same tokens behind others"),
        pytest.param(fingerprints([1, 2, 3, 4], "b"), id="another tenant"),
        pytest.param(
            PrefixChain(derive_scope(KEY, "a", "another model"), PAGE).first([1, 2, 3, 4], 1), id="another model"
        ),
        pytest.param(
            PrefixChain(derive_scope(b"another server's key", "a"), PAGE).first([1, 2, 3, 4], 1), id="another key"
        ),
    ],
)
def test_a_page_is_not_found_by_anything_else(names):
    pool = PagePool(8)
    pool.release(compute(pool, [1, 2, 3, 4]))

    assert pool.find(names) == 0


def test_scopes_do_not_run_into_each_other():
    assert derive_scope(KEY, "a", "bc") != derive_scope(KEY, "ab", "c")


def test_a_short_server_key_is_refused():
    with pytest.raises(ValueError, match="at least 16 bytes, found 3"):
        derive_scope(b"abc", "a")


def test_two_that_computed_the_same_page_end_up_with_one():
    pool = PagePool(8)
    first, second = compute(pool, [1, 2, 3, 4]), compute(pool, [1, 2, 3, 4])

    assert first == second
    assert pool.references(first[0]) == 2
    assert pool.free_count == 7


def test_kept_pages_give_way_to_an_allocation_but_held_ones_never():
    pool = PagePool(4)
    held = compute(pool, [1, 2, 3, 4])
    pool.release(compute(pool, [5, 6, 7, 8]))

    taken = pool.allocate(3)

    assert not set(taken) & set(held)
    assert pool.find(fingerprints([5, 6, 7, 8])) == 0
    assert pool.find(fingerprints([1, 2, 3, 4])) == 1
    assert pool.evictions == {"a": 1}


def test_the_end_of_a_sequence_goes_before_its_beginning():
    pool = PagePool(4)
    tokens = list(range(16))
    pool.release(compute(pool, tokens))

    pool.allocate(1)

    assert pool.find(fingerprints(tokens)) == 3


def test_pages_given_back_early_hold_up_the_costlier_ones_before_them():
    pool = PagePool(5, costly_depth=1)
    tokens = list(range(20))
    pages = compute(pool, tokens)
    pool.release(pages[3:])
    pool.release(pages[:3])

    pool.allocate(1)

    assert pool.find(fingerprints(tokens)) == 4


def test_a_page_that_was_found_again_outlives_newer_ones_that_were_not():
    pool = PagePool(3)
    popular, other = [1, 2, 3, 4], [5, 6, 7, 8]
    pool.release(compute(pool, popular))
    pool.release(pool.take(fingerprints(popular)))
    pool.release(compute(pool, other))

    pool.allocate(2)

    assert pool.find(fingerprints(popular)) == 1
    assert pool.find(fingerprints(other)) == 0


def test_a_page_that_nobody_comes_back_for_fades_however_popular_it_was():
    shelf = Shelf()
    shelf.put(0, grade_of(0, 100, 1024))
    for page in range(1, 1000):
        shelf.put(page, 0)
        if shelf.pop() == 0:
            return
    pytest.fail("1,000 pages later the once popular one is still there")


def test_a_page_deep_in_a_sequence_is_worth_more_than_a_shallow_one():
    assert grade_of(2048, 0, 1024) > grade_of(0, 0, 1024)
    assert grade_of(10**6, 10**6, 1) == CLASSES - 1


def test_a_flooder_takes_its_own_kept_pages_before_those_of_a_tenant_below_its_share():
    pool = PagePool(12)
    quiet = [1, 2, 3, 4, 5, 6, 7, 8]
    pool.release(compute(pool, quiet, "quiet"))

    for start in range(100, 1000, 16):
        pool.release(compute(pool, list(range(start, start + 16)), "flooder"))

    assert pool.find(fingerprints(quiet, "quiet")) == 2


def test_a_tenant_of_more_weight_keeps_more():
    pool = PagePool(12, weights={"big": 3.0})
    for start in range(0, 4000, 4):
        for tenant in ("small", "big"):
            pool.release(compute(pool, list(range(start, start + 4)), tenant))

    assert (pool.pages_of("small"), pool.pages_of("big")) == (3, 9)


def test_what_a_tenant_leaves_another_may_borrow():
    pool = PagePool(12)

    pool.release(compute(pool, list(range(48)), "alone"))

    assert pool.pages_of("alone") == 12


STREAMS = [
    [stream if place >= branch else 0 for place in range(24)] for stream, branch in enumerate([0, 4, 8, 8, 16], 1)
]
"""Streams of six pages that share beginnings of zero, one, two and four pages."""


class Serving(RuleBasedStateMachine):
    """Sequences find, compute and leave pages, while a model of the memory remembers what is in each page."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(10, weights={"b": 2.0}, costly_depth=2)
        self.memory: dict[int, bytes] = {}
        self.running: list[tuple[str, list[int], list[int], int]] = []

    @rule(stream=st.sampled_from(STREAMS), tenant=st.sampled_from("ab"))
    def start(self, stream: list[int], tenant: str) -> None:
        names = fingerprints(stream, tenant)
        expected = self.pool.find(names)
        pages = self.pool.take(names)
        assert len(pages) == expected
        assert [self.memory[page] for page in pages] == names[: len(pages)], (
            "a page was found that holds something else"
        )
        self.running.append((tenant, stream, list(pages), len(pages)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute_one_page(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.running) - 1))
        tenant, stream, pages, done = self.running[index]
        if done == len(stream) // PAGE or self.pool.free_count == 0:
            return
        (page,) = self.pool.allocate(1, tenant)
        assert page not in {page for _, _, others, _ in self.running for page in others}, "a held page was given away"
        names = fingerprints(stream, tenant)
        self.memory[page] = name = names[done]
        pages.append(self.pool.publish(page, name, names[done - 1] if done else None, done))
        assert self.memory[pages[-1]] == name
        self.running[index] = tenant, stream, pages, done + 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        _, _, pages, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.pool.release(pages)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(0, 6))
    def give_back_the_end(self, data: st.DataObject, count: int) -> None:
        index = data.draw(st.integers(0, len(self.running) - 1))
        tenant, stream, pages, _ = self.running[index]
        kept = max(0, len(pages) - count)
        self.pool.release(pages[kept:])
        self.running[index] = tenant, stream, pages[:kept], kept

    @invariant()
    def books_are_sound(self) -> None:
        self.pool.check()
        for tenant in "ab":
            for stream in STREAMS:
                names = fingerprints(stream, tenant)
                here = [self.pool.find([name]) for name in names]
                assert here == sorted(here, reverse=True), "a page is kept whose beginning is gone"


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
