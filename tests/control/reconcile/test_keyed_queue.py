"""The work queue under virtual time: no sleeps, the clock is a number."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue, Backoff, KeyedQueue, QueueClosed, Rate

PLENTY = Rate(per_s=1e6, burst=1_000_000)


def build_queue(backoff: Backoff | None = None, rate: Rate = PLENTY) -> KeyedQueue[str]:
    return KeyedQueue(backoff or Backoff(first_s=1.0, longest_s=60.0, jitter=0.0), rate)


def test_a_key_added_twice_runs_once():
    queue = build_queue()
    queue.add("a", 0.0)
    queue.add("a", 0.5)

    assert (queue.take(1.0), queue.take(1.0)) == ("a", None)


def test_keys_come_out_in_the_order_they_became_due():
    queue = build_queue()
    queue.add("late", 0.0, delay_s=5.0)
    queue.add("first", 0.0)
    queue.add("second", 0.0)

    assert [queue.take(9.0) for _ in range(3)] == ["first", "second", "late"]


def test_a_key_touched_while_busy_runs_again_only_after_it_is_done():
    queue = build_queue()
    queue.add("a", 0.0)
    queue.take(0.0)
    queue.add("a", 1.0)

    before = queue.take(1.0)
    queue.done("a", 2.0)

    assert (before, queue.take(2.0)) == (None, "a")


def test_an_untouched_key_does_not_come_back_after_it_is_done():
    queue = build_queue()
    queue.add("a", 0.0)
    queue.take(0.0)
    queue.done("a", 1.0)

    assert queue.next_due_s(1.0) is None


def test_an_earlier_due_time_wins_over_a_later_one():
    queue = build_queue()
    queue.add("a", 0.0, delay_s=100.0)
    queue.add("a", 0.0, delay_s=1.0)
    queue.add("a", 0.0, delay_s=50.0)

    assert (queue.take(0.5), queue.take(1.0)) == (None, "a")


@pytest.mark.parametrize(
    ("failures", "expected_s"),
    [
        pytest.param(1, 1.0, id="first failure"),
        pytest.param(3, 4.0, id="doubles each time"),
        pytest.param(7, 60.0, id="stops at the longest wait"),
        pytest.param(5000, 60.0, id="does not overflow"),
    ],
)
def test_failures_in_a_row_wait_longer(failures, expected_s):
    assert Backoff(first_s=1.0, longest_s=60.0, jitter=0.5).delay_s(failures, random=0.0) == expected_s


def test_jitter_spreads_equal_failures():
    backoff = Backoff(first_s=10.0, longest_s=60.0, jitter=0.2)

    assert (backoff.delay_s(1, 0.0), backoff.delay_s(1, 0.5)) == (10.0, 11.0)


def test_success_forgets_earlier_failures():
    queue = build_queue()
    for now in (0.0, 10.0):
        queue.add("a", now)
        queue.take(now)
        queue.retry("a", now, random=0.0)
    queue.take(20.0)
    queue.done("a", 20.0)
    queue.add("a", 20.0)
    queue.take(20.0)

    assert queue.retry("a", 20.0, random=0.0) == 1.0


def test_a_server_that_names_a_longer_wait_is_obeyed():
    queue = build_queue()
    queue.add("a", 0.0)
    queue.take(0.0)

    assert queue.retry("a", 0.0, random=0.0, at_least_s=30.0) == 30.0
    assert (queue.take(29.9), queue.take(30.0)) == (None, "a")


def test_a_touch_during_a_failing_run_does_not_shorten_its_wait():
    queue = build_queue()
    queue.add("a", 0.0)
    queue.take(0.0)
    queue.add("a", 0.0)
    queue.retry("a", 0.0, random=0.0)

    assert (queue.take(0.9), queue.take(1.0)) == (None, "a")


def test_starts_are_limited_to_the_rate_after_the_burst():
    queue = build_queue(rate=Rate(per_s=2.0, burst=3))
    for number in range(6):
        queue.add(f"k{number}", 0.0)

    at_once = [queue.take(0.0) for _ in range(4)]

    assert at_once == ["k0", "k1", "k2", None]
    assert queue.next_due_s(0.0) == pytest.approx(0.5)
    assert (queue.take(0.5), queue.take(0.5)) == ("k3", None)


def test_groups_take_turns_however_many_keys_one_of_them_has():
    queue = KeyedQueue[str](Backoff(), PLENTY, group_of=lambda key: key[0])
    for number in range(5):
        queue.add(f"a{number}", 0.0)
    queue.add("b0", 1.0)
    queue.add("c0", 1.0)

    assert [queue.take(2.0) for _ in range(7)] == ["a0", "b0", "c0", "a1", "a2", "a3", "a4"]


def test_a_group_that_was_served_stands_behind_one_that_was_not():
    queue = KeyedQueue[str](Backoff(), PLENTY, group_of=lambda key: key[0])
    for key in ("a0", "a1", "b0", "b1"):
        queue.add(key, 0.0)
    first = queue.take(1.0)
    queue.add("c0", 1.0)

    assert [first, *(queue.take(1.0) for _ in range(4))] == ["a0", "b0", "a1", "c0", "b1"]


def test_a_key_that_was_forgotten_in_line_is_skipped():
    queue = build_queue()
    queue.add("a", 0.0)
    queue.add("b", 0.0)
    queue.next_due_s(1.0)
    queue.forget("a")

    assert (queue.take(1.0), queue.take(1.0)) == ("b", None)


def test_head_age_tells_how_long_the_oldest_due_key_waits():
    queue = build_queue()
    queue.add("later", 0.0, delay_s=100.0)
    assert queue.head_age_s(50.0) == 0.0
    queue.add("now", 10.0)

    assert (queue.head_age_s(50.0), queue.depth) == (40.0, 2)


class Machine(RuleBasedStateMachine):
    """Random operations against a slow model: what must still run, and what runs now."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = KeyedQueue[str](Backoff(1.0, 30.0, 0.3), Rate(per_s=5.0, burst=4), group_of=lambda key: key < "c")
        self.now = 0.0
        self.busy: set[str] = set()
        self.owed: set[str] = set()  # keys that must run after the last change they saw

    keys = st.sampled_from("abcdef")

    @rule(key=keys, delay=st.sampled_from([0.0, 0.0, 1.5, 20.0]))
    def add(self, key, delay):
        self.queue.add(key, self.now, delay)
        self.owed.add(key)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 40.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def take(self):
        key = self.queue.take(self.now)
        if key is not None:
            assert key not in self.busy, "one key runs twice at once"
            assert key in self.owed, "a key runs that nobody asked for"
            self.busy.add(key)
            self.owed.discard(key)

    @rule(key=keys)
    def done(self, key):
        if key in self.busy:
            self.busy.discard(key)
            self.queue.done(key, self.now)

    @rule(key=keys)
    def forget(self, key):
        self.queue.forget(key)
        self.owed.discard(key)

    @rule(key=keys, random=st.floats(0, 0.999))
    def retry(self, key, random):
        if key in self.busy:
            self.busy.discard(key)
            self.owed.add(key)
            self.queue.retry(key, self.now, random)

    @invariant()
    def holds(self):
        self.queue.check()
        assert self.queue.busy == self.busy
        assert self.queue.depth == len(self.owed)
        due = self.queue.next_due_s(self.now)
        assert (due is None) == (not (self.owed - self.busy))

    def teardown(self):
        """Whatever was asked for runs in the end: nothing is lost and nothing starves."""
        for key in list(self.busy):
            self.done(key)
        for _ in range(200):
            due = self.queue.next_due_s(self.now)
            if due is None:
                break
            self.now = max(self.now, due)
            self.take()
            for key in list(self.busy):
                self.done(key)
        assert not self.owed


TestEveryKeyAskedForRunsAndNeverTwiceAtOnce = Machine.TestCase
TestEveryKeyAskedForRunsAndNeverTwiceAtOnce.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


async def test_a_worker_wakes_when_a_key_arrives():
    queue = AsyncKeyedQueue[str](build_queue(), asyncio.get_running_loop().time, lambda: 0.0)
    worker = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add("a")

    assert await asyncio.wait_for(worker, 1.0) == "a"


async def test_a_waiting_worker_wakes_for_an_earlier_key():
    queue = AsyncKeyedQueue[str](build_queue(), asyncio.get_running_loop().time, lambda: 0.0)
    queue.add("in an hour", delay_s=3600.0)
    worker = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add("now")

    assert await asyncio.wait_for(worker, 1.0) == "now"


async def test_closing_ends_all_waiting_workers_and_takes_no_more():
    queue = AsyncKeyedQueue[str](build_queue(), asyncio.get_running_loop().time, lambda: 0.0)
    workers = [asyncio.create_task(queue.take()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()
    queue.add("too late")

    results = await asyncio.gather(*workers, return_exceptions=True)

    assert [type(result) for result in results] == [QueueClosed] * 3
    assert queue.depth == 0
