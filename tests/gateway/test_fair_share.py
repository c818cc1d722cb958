"""A space that tenants share: never overfull, nobody fills it alone, newcomers find room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from windlass_gateway.fair_share import SharedSpace

SIZE = 100_000
moves = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20_000), st.booleans()), max_size=80)


@given(moves)
def test_whatever_tenants_do_a_newcomer_finds_half_of_what_is_free(steps: list[tuple[int, int, bool]]) -> None:
    space = SharedSpace(SIZE)
    taken: dict[str, list[int]] = {}

    for number, amount, gives_back in steps:
        tenant = f"t-{number}"
        if gives_back and taken.get(tenant):
            space.give_back(tenant, taken[tenant].pop())
        elif space.take(tenant, amount):
            taken.setdefault(tenant, []).append(amount)
            assert space.held_by(tenant) <= SIZE - space.held, "as much as it leaves free"
        space.check()

    free = SIZE - space.held
    assert free > 0
    assert space.take("newcomer", free // 2)


def test_one_tenant_alone_gets_half() -> None:
    space = SharedSpace(SIZE)

    while space.take("a", 100):
        pass

    assert space.held == SIZE // 2


@given(st.integers(1, 9))
def test_tenants_that_want_everything_settle_at_equal_parts(count: int) -> None:
    space = SharedSpace(SIZE)
    names = [f"t-{number}" for number in range(count)]
    held = dict.fromkeys(names, 0)

    for _ in range(3000):
        for name in names:
            if held[name]:
                space.give_back(name, 100)
                held[name] -= 100
            for _ in range(2):
                held[name] += 100 if space.take(name, 100) else 0

    for name in names:
        assert abs(held[name] - SIZE / (count + 1)) <= 0.1 * SIZE / (count + 1) + 200
