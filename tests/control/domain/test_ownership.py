"""Renting against owning: the break-even point found by search is the one that algebra gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from windlass_operator.domain.ownership import (
    HOURS_PER_MONTH,
    HOURS_PER_YEAR,
    Owned,
    Rented,
    compare_at,
    find_break_even,
    machines_for,
    payback_months,
    solve_break_even,
)

RENTED = Rented("cloud", price_per_gpu_hour=4.0, tokens_per_s=1000.0)
SERVER = Owned(
    "server",
    gpus=8,
    purchase=HOURS_PER_YEAR * 4 * 10,  # ten an hour over four years
    amortisation_years=4,
    tokens_per_s=1000.0,
    idle_watts=1000,
    full_watts=9000,
    price_per_kwh=0.25,
    pue=1.2,
)

money = st.floats(0, 1e6)
rentals = st.builds(Rented, st.just("cloud"), st.floats(0.1, 50), st.floats(10, 1e5))
machines = st.builds(
    Owned,
    st.just("server"),
    gpus=st.integers(1, 16),
    purchase=st.floats(100, 1e6),
    amortisation_years=st.floats(0.5, 10),
    tokens_per_s=st.floats(10, 1e5),
    residual_value=st.just(0.0),
    maintenance_per_year=money,
    hosting_per_month=st.floats(0, 1e4),
    idle_watts=st.floats(0, 2000),
    full_watts=st.floats(2000, 20_000),
    price_per_kwh=st.floats(0, 1),
    pue=st.floats(1, 2),
)


def test_an_hour_of_an_own_machine_is_its_purchase_its_upkeep_and_its_power() -> None:
    owned = replace(
        SERVER,
        residual_value=HOURS_PER_YEAR * 4 * 2,
        maintenance_per_year=HOURS_PER_YEAR,
        hosting_per_month=HOURS_PER_MONTH * 3,
    )

    assert owned.fixed_per_hour == pytest.approx(8 + 1 + 3)
    assert owned.power_per_hour(0.0) == pytest.approx(1.0 * 1.2 * 0.25)
    assert owned.power_per_hour(0.5) == pytest.approx(5.0 * 1.2 * 0.25)


def test_renting_follows_the_load_and_pays_for_one_gpu_at_least() -> None:
    levels = [compare_at(share, 1, RENTED, SERVER) for share in (0.0, 0.01, 0.5, 1.0)]

    assert [level.rented_per_hour for level in levels] == [4.0, 4.0, 16.0, 32.0]
    assert [level.rented_per_million for level in levels[2:]] == [pytest.approx(4 / 3.6), pytest.approx(4 / 3.6)]
    assert levels[0].owned_per_million is None


@pytest.mark.parametrize(("load", "peak", "expected"), [(1, 1, 1), (8000, 1, 1), (8001, 1, 2), (8000, 2, 2), (0, 3, 1)])
def test_own_machines_are_bought_for_the_busiest_hour(load: float, peak: float, expected: int) -> None:
    assert machines_for(load, peak, SERVER) == expected


def test_the_break_even_point_of_a_server_by_hand() -> None:
    # Owning: 10 + 0.3 + 2.4 u an hour. Renting: 32 u. They meet at u = 10.3 / 29.6.
    level = compare_at(0.5, 1, RENTED, SERVER)

    point = find_break_even(level, RENTED, SERVER)

    assert point.utilisation == pytest.approx(10.3 / 29.6)
    assert point.tokens_per_hour == pytest.approx(10.3 / 29.6 * 8 * 3.6e6)
    # 16 an hour are not rented, 1.5 an hour are spent on power: 14.5 an hour earn the purchase.
    assert point.payback_months == pytest.approx(SERVER.purchase / (14.5 * HOURS_PER_MONTH))


@given(rentals, machines, st.integers(1, 5), st.floats(0, 1))
def test_the_search_agrees_with_algebra(rented: Rented, owned: Owned, count: int, headroom: float) -> None:
    per_share = count * owned.machine_tokens_per_s * (1 + headroom) / rented.tokens_per_s * rented.price_per_gpu_hour
    idle = count * (owned.fixed_per_hour + owned.power_per_hour(0.0))
    rise = count * (owned.power_per_hour(1.0) - owned.power_per_hour(0.0))
    one_gpu = rented.price_per_gpu_hour / per_share  # the share from which on renting follows the load
    assume(one_gpu < 1)
    assume(abs(per_share - idle - rise) > 1e-6 * idle)

    found = solve_break_even(count, rented, owned, headroom)

    if per_share < idle + rise:
        assert found is None
    else:
        algebra = idle / (per_share - rise)
        assert found == pytest.approx(algebra if algebra > one_gpu else 0.0, rel=1e-6)


@given(rentals, machines, st.integers(1, 5), st.floats(0, 1))
def test_from_the_break_even_point_on_owning_never_costs_more(
    rented: Rented, owned: Owned, count: int, share: float
) -> None:
    point = solve_break_even(count, rented, owned)
    level = compare_at(share, count, rented, owned)
    slack = 1e-9 * level.owned_per_hour

    if point is None:
        assert (
            compare_at(1.0, count, rented, owned).owned_per_hour > compare_at(1.0, count, rented, owned).rented_per_hour
        )
    elif share >= point:
        assert level.owned_per_hour <= level.rented_per_hour + slack


def test_a_machine_that_costs_more_to_run_than_to_rent_never_pays_back() -> None:
    level = compare_at(0.0, 1, replace(RENTED, price_per_gpu_hour=0.1), SERVER)

    assert payback_months(level, SERVER) is None
    assert solve_break_even(1, replace(RENTED, price_per_gpu_hour=0.1), SERVER) is None
