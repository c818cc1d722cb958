"""Least load, fair ties, and rest for replicas that refuse."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from windlass_contract.endpoints import Replica
from windlass_gateway.picking import LONGEST_REST_S, Picker

A, B, C = FLEET = tuple(Replica(name, f"http://{name}") for name in "abc")


def take(picker: Picker, now_s: float = 0.0) -> Replica:
    chosen = picker.pick(FLEET, (), now_s)
    assert chosen is not None
    picker.start(chosen)
    return chosen


def test_ties_rotate() -> None:
    picker = Picker()

    turns = []
    for _ in range(6):
        turns.append(take(picker))
        picker.finish(turns[-1])

    assert turns == [A, B, C, A, B, C]


def test_the_least_loaded_is_picked() -> None:
    picker = Picker()
    for _ in range(3):
        take(picker)
    picker.finish(B)

    assert take(picker) == B


def test_a_tried_replica_is_not_picked_again() -> None:
    assert Picker().pick([A], [A], 0.0) is None


def test_a_refusing_replica_rests_longer_each_time_until_it_answers() -> None:
    picker = Picker()

    rests = [picker.refused(A, 0.0) for _ in range(8)]
    picker.answered(A)

    assert rests == [0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_REST_S, LONGEST_REST_S, LONGEST_REST_S]
    assert picker.refused(A, 0.0) == 0.5


def test_a_resting_replica_is_avoided_and_then_tried_again() -> None:
    picker = Picker()
    picker.refused(A, 0.0)

    assert picker.pick([A, B], (), 0.4) == B
    assert picker.pick([A], (), 0.4) == A, "trying beats failing when nobody else is left"
    assert picker.pick([A, B], (), 0.5) == A


@given(st.lists(st.tuples(st.sampled_from(["start", "finish", "refused", "answered", "keep"]), st.sampled_from(FLEET))))
def test_the_books_balance_after_any_history(history: list[tuple[str, Replica]]) -> None:
    picker, in_flight = Picker(), Counter[Replica]()
    for step, (act, replica) in enumerate(history):
        if act == "start":
            picker.start(replica)
            in_flight[replica] += 1
        elif act == "finish" and in_flight[replica]:
            picker.finish(replica)
            in_flight[replica] -= 1
        elif act == "refused":
            picker.refused(replica, float(step))
        elif act == "answered":
            picker.answered(replica)
        elif act == "keep":
            picker.keep_only({A})
        picker.check()

    assert all(picker.in_flight(replica) == in_flight[replica] for replica in FLEET)
