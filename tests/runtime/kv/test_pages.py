import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_runtime.errors import CapacityError
from windlass_runtime.kv.pages import PagePool, PagesExhausted


def test_a_page_is_given_out_once_until_it_is_released() -> None:
    pool = PagePool(3)

    pages = pool.allocate(3)

    assert sorted(pages) == [0, 1, 2]
    assert pool.free_count == 0
    pool.release(pages[:1])
    assert pool.allocate(1) == pages[:1]


def test_an_allocation_that_does_not_fit_takes_nothing_and_says_the_figures() -> None:
    pool = PagePool(4)
    pool.allocate(1)

    with pytest.raises(PagesExhausted, match="need 4 pages, 3 free of 4") as caught:
        pool.allocate(4)

    assert isinstance(caught.value, CapacityError)
    assert pool.free_count == 3


def test_a_shared_page_is_free_only_after_its_last_owner_let_go() -> None:
    pool = PagePool(1)
    pages = pool.allocate(1)
    pool.share(pages)

    pool.release(pages)
    assert pool.free_count == 0
    pool.release(pages)

    assert pool.free_count == 1


@pytest.mark.parametrize("misuse", ["release", "share"])
def test_a_free_page_can_be_neither_released_nor_shared(misuse: str) -> None:
    pool = PagePool(2)

    with pytest.raises(ValueError, match="page 1: expected a held page"):
        getattr(pool, misuse)([1])


@pytest.mark.parametrize("count", [0, -1])
def test_a_pool_without_pages_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="at least 1 page"):
        PagePool(count)


@given(
    size=st.integers(1, 12),
    operations=st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 6)), max_size=60),
)
def test_counts_agree_with_a_list_of_owners_after_any_operations(size: int, operations: list[tuple[str, int]]) -> None:
    pool = PagePool(size)
    owners: list[tuple[int, ...]] = []

    for operation, number in operations:
        if operation == "allocate":
            free = size - len({page for pages in owners for page in pages})
            if number <= free:
                owners.append(pool.allocate(number))
            else:
                with pytest.raises(PagesExhausted):
                    pool.allocate(number)
        elif owners and operation == "share":
            pool.share(owners[number % len(owners)])
            owners.append(owners[number % len(owners)])
        elif owners:
            pool.release(owners.pop(number % len(owners)))
        pool.check()

    held = [page for pages in owners for page in pages]
    assert [pool.references(page) for page in range(size)] == [held.count(page) for page in range(size)]
    assert pool.free_count == size - len(set(held))
