from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_runtime.scheduling.fair_share import Account, FairShare


def enter(shares: FairShare, tenant: str, present: Sequence[Account] = ()) -> Account:
    account = shares.enter(tenant)
    shares.lift(account, present)
    return account


@settings(max_examples=200, deadline=None)
@given(
    grants=st.lists(st.integers(1, 30), min_size=1, max_size=200),
    weights=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=4),
    quantum=st.integers(1, 100),
)
def test_tenants_that_always_want_something_are_never_further_apart_than_a_quantum_and_a_grant(
    grants: list[int], weights: list[float], quantum: int
) -> None:
    shares = FairShare(quantum, {str(number): weight for number, weight in enumerate(weights)})
    accounts = [enter(shares, str(number)) for number in range(len(weights))]
    for grant in grants:
        if not any(shares.is_due(account) for account in accounts):
            shares.next_round(accounts)
        # The least favourable choice that the rule allows: whoever has been served most among those that are due.
        max((account for account in accounts if shares.is_due(account)), key=lambda account: account.served).charge(
            grant
        )

        by_weight = [account.total / account.weight for account in accounts]
        assert max(by_weight) - min(by_weight) <= quantum + max(grants) / min(weights) + 1e-6


def test_a_tenant_that_comes_back_has_saved_up_one_quantum_and_no_more() -> None:
    shares = FairShare(100)
    busy = enter(shares, "busy")
    seldom = enter(shares, "seldom", [busy])
    for _ in range(50):
        busy.charge(100)
        if not shares.is_due(busy):
            shares.next_round([busy])

    shares.lift(seldom, [busy, seldom])

    assert shares.line - seldom.served == 100


def test_work_that_nobody_competed_for_is_no_debt() -> None:
    shares = FairShare(100)
    busy = enter(shares, "busy")
    busy.charge(5_000)

    newcomer = enter(shares, "newcomer", [busy])

    assert busy.served - newcomer.served <= 100
    assert shares.is_due(busy)


def test_leaving_and_coming_back_in_the_same_round_pays_nothing() -> None:
    shares = FairShare(100)
    other, clever = enter(shares, "other"), enter(shares, "clever")
    clever.charge(120)
    shares.leave("clever", clever)

    back = enter(shares, "clever", [other])

    assert back.served == clever.served
    assert not shares.is_due(back)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_weights_are_positive_numbers(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of tenant a"):
        FairShare(1, {"a": weight})
