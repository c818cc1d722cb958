from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass_operator.power.energy import EnergyBook, ServiceKey
from windlass_operator.power.holding import PodDevices

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines share their cores
CHAT, CODE = ServiceKey("a", "chat"), ServiceKey("b", "code")
POD, OTHER = PodDevices("a", "chat-1"), PodDevices("b", "code-1")
SERVICES = {"a/chat-1": CHAT, "b/code-1": CODE}


def observe(
    book: EnergyBook, now_s: float, joules: float, tokens: dict[str, float], *pods: PodDevices
) -> dict[ServiceKey, float | None]:
    book.observe(now_s, {"GPU-a": joules}, {"GPU-a": pods or (POD,)}, SERVICES, tokens)
    return {key: account.joules_per_token() for key, account in book.accounts.items()}


def test_joules_per_token_is_energy_by_tokens_of_the_same_time() -> None:
    book = EnergyBook(300)
    observe(book, 0, 1000, {"a/chat-1": 50})

    assert observe(book, 15, 4000, {"a/chat-1": 250}) == {CHAT: 15.0}


def test_without_tokens_there_is_no_price() -> None:
    book = EnergyBook(300)
    observe(book, 0, 1000, {"a/chat-1": 50})

    assert observe(book, 15, 4000, {"a/chat-1": 50}) == {CHAT: None}
    assert book.accounts[CHAT].joules == 3000


def test_a_page_that_was_missed_makes_no_token_dearer() -> None:
    book = EnergyBook(300)
    observe(book, 0, 1000, {"a/chat-1": 50})
    observe(book, 15, 4000, {})

    assert observe(book, 30, 7000, {"a/chat-1": 650}) == {CHAT: 10.0}


def test_a_replica_that_started_anew_counts_from_zero() -> None:
    book = EnergyBook(300)
    observe(book, 0, 1000, {"a/chat-1": 5000})

    assert observe(book, 15, 3000, {"a/chat-1": 100}) == {CHAT: 20.0}


def test_a_reloaded_driver_costs_nothing() -> None:
    book = EnergyBook(300)
    observe(book, 0, 9000, {"a/chat-1": 0})
    observe(book, 15, 10, {"a/chat-1": 10})

    assert book.accounts[CHAT].joules == 0


def test_sharers_pay_evenly() -> None:
    book = EnergyBook(300)
    observe(book, 0, 0, {}, POD, OTHER)
    observe(book, 15, 600, {}, POD, OTHER)

    assert {key: account.joules for key, account in book.accounts.items()} == {CHAT: 300, CODE: 300}


def test_a_stranger_takes_its_share_and_gets_no_account() -> None:
    book = EnergyBook(300)
    stranger = PodDevices("c", "x")
    observe(book, 0, 0, {}, POD, stranger)
    observe(book, 15, 600, {}, POD, stranger)

    assert {key: account.joules for key, account in book.accounts.items()} == {CHAT: 300}


def test_what_lies_before_the_window_is_forgotten() -> None:
    book = EnergyBook(30)
    observe(book, 0, 0, {"a/chat-1": 0})
    observe(book, 15, 1500, {"a/chat-1": 10})
    observe(book, 30, 1600, {"a/chat-1": 20})

    assert observe(book, 60, 1800, {"a/chat-1": 40}) == {CHAT: 10.0}


def test_services_that_left_the_node_are_forgotten() -> None:
    book = EnergyBook(30)
    observe(book, 0, 0, {"a/chat-1": 5}, POD, OTHER)

    observe(book, 15, 10, {"b/code-1": 5}, OTHER)

    assert list(book.accounts) == [CODE]
    assert book._tokens.keys() == {"b/code-1"}


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3)), min_size=2, max_size=20))
def test_no_energy_is_lost_or_counted_twice(steps: list[tuple[int, int]]) -> None:
    book, counter = EnergyBook(1e9), 0
    observe(book, 0, 0, {}, POD, OTHER)
    for number, (joules, _) in enumerate(steps):
        counter += joules
        observe(book, number, counter, {}, POD, OTHER)

    assert sum(account.joules for account in book.accounts.values()) == pytest.approx(counter)
