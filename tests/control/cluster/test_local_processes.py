"""Which replica processes start, leave and die: tables for single decisions, random runs for the promises."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_operator.cluster.local_processes import (
    LIVE,
    Crashes,
    Phase,
    Process,
    ProcessPlan,
    Wanted,
    plan_processes,
)

OLD, NEW = "old", "new"


def build(*words: str, since_s: float = 0.0) -> list[Process]:
    """`new Ready`, `old Starting`: one process each, named by position."""
    pairs = [word.split() for word in words]
    return [Process(f"p{index}", pair[0], Phase(pair[1]), since_s) for index, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("wanted", "processes", "expected"),
    [
        pytest.param(Wanted(2, NEW), build(), ProcessPlan(start=2), id="nothing runs: all start at once"),
        pytest.param(Wanted(2, NEW), build("new Ready", "new Ready"), ProcessPlan(), id="as wanted: nothing to do"),
        pytest.param(
            Wanted(1, NEW),
            build("new Ready", "new Ready"),
            ProcessPlan(leave=("p1",)),
            id="surplus: the younger one leaves",
        ),
        pytest.param(
            Wanted(1, NEW),
            build("new Starting", "new Ready"),
            ProcessPlan(terminate=("p0",)),
            id="surplus: one that never was ready goes first, without notice",
        ),
        pytest.param(
            Wanted(2, NEW),
            build("old Ready", "old Ready"),
            ProcessPlan(start=1),
            id="new revision: one more than wanted starts, nothing leaves yet",
        ),
        pytest.param(
            Wanted(2, NEW),
            build("old Ready", "old Ready", "new Starting"),
            ProcessPlan(),
            id="new revision: old ones wait for the first new one to be ready",
        ),
        pytest.param(
            Wanted(2, NEW),
            build("old Ready", "old Ready", "new Ready"),
            ProcessPlan(start=1, leave=("p0",)),
            id="new revision: each ready new one frees one old one",
        ),
        pytest.param(
            Wanted(2, NEW),
            build("old Starting", "old Ready"),
            ProcessPlan(start=2, terminate=("p0",)),
            id="new revision: an old one that serves nobody is replaced at once",
        ),
        pytest.param(
            Wanted(2, NEW, surge=0, unavailable=1),
            build("old Ready", "old Ready"),
            ProcessPlan(start=1, leave=("p0",)),
            id="no surge: an old one leaves first",
        ),
        pytest.param(
            Wanted(0, NEW),
            build("new Ready", "old Ready", "new Starting"),
            ProcessPlan(leave=("p0", "p1"), terminate=("p2",)),
            id="nothing wanted: all leave",
        ),
        pytest.param(
            Wanted(1, NEW),
            build("new Draining"),
            ProcessPlan(start=1),
            id="one that drains does not count",
        ),
    ],
)
def test_the_next_step(wanted: Wanted, processes: list[Process], expected: ProcessPlan) -> None:
    plan = plan_processes(wanted, processes, Crashes(), now_s=10.0)

    assert dataclasses.replace(plan, wake_s=None) == dataclasses.replace(expected, wake_s=None)


@pytest.mark.parametrize(
    ("process", "now_s", "expected"),
    [
        pytest.param(
            Process("p", NEW, Phase.LEAVING, 10.0), 10.2, ProcessPlan(wake_s=10.3), id="still being announced"
        ),
        pytest.param(
            Process("p", NEW, Phase.LEAVING, 10.0), 10.3, ProcessPlan(terminate=("p",)), id="told once announced"
        ),
        pytest.param(Process("p", NEW, Phase.DRAINING, 10.0), 69.0, ProcessPlan(wake_s=70.0), id="has time to drain"),
        pytest.param(Process("p", NEW, Phase.DRAINING, 10.0), 70.0, ProcessPlan(kill=("p",)), id="killed after that"),
    ],
)
def test_a_goodbye_takes_its_time_and_no_longer(process: Process, now_s: float, expected: ProcessPlan) -> None:
    assert plan_processes(Wanted(0, NEW), [process], Crashes(), now_s) == expected


def test_a_replica_that_never_gets_ready_is_killed_after_the_startup_timeout() -> None:
    stuck = Process("p", NEW, Phase.STARTING, 0.0)

    plan = plan_processes(Wanted(1, NEW, startup_timeout_s=100.0), [stuck], Crashes(), now_s=100.0)

    assert plan.kill == ("p",)


@pytest.mark.parametrize(
    ("in_a_row", "pause_s"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (5000, 30.0)]
)
def test_crashes_in_a_row_double_the_pause_up_to_a_bound(in_a_row: int, pause_s: float) -> None:
    crashes = Crashes(in_a_row, last_s=100.0)

    too_early = plan_processes(Wanted(1, NEW), [], crashes, now_s=100.0 + pause_s - 0.01)
    in_time = plan_processes(Wanted(1, NEW), [], crashes, now_s=100.0 + pause_s)

    assert (too_early.start, too_early.wake_s) == (0, 100.0 + pause_s)
    assert in_time.start == 1


def test_a_long_ready_time_forgives_earlier_crashes() -> None:
    assert Crashes(5, 0.0).after(now_s=99.0, ready_for_s=60.0) == Crashes(1, 99.0)
    assert Crashes(5, 0.0).after(now_s=99.0, ready_for_s=59.0) == Crashes(6, 99.0)


phases = st.sampled_from([Phase.STARTING, Phase.READY, Phase.LEAVING, Phase.DRAINING])
processes_of_any_kind = st.lists(st.tuples(st.sampled_from([OLD, NEW]), phases), max_size=8).map(
    lambda pairs: [Process(f"p{index}", revision, phase, float(index)) for index, (revision, phase) in enumerate(pairs)]
)
wanted_of_any_kind = st.builds(
    Wanted, st.integers(0, 5), st.just(NEW), surge=st.integers(1, 2), unavailable=st.integers(0, 2)
)


@given(wanted_of_any_kind, processes_of_any_kind)
def test_no_step_takes_more_readiness_than_allowed(wanted: Wanted, processes: list[Process]) -> None:
    plan = plan_processes(wanted, processes, Crashes(), now_s=20.0)

    ready = {item.name for item in processes if item.phase is Phase.READY}
    floor = min(len(ready), max(0, wanted.replicas - wanted.unavailable))
    assert len(ready - set(plan.leave)) >= floor
    assert len({*plan.leave, *plan.terminate, *plan.kill}) == len(plan.leave) + len(plan.terminate) + len(plan.kill)


@given(wanted_of_any_kind, processes_of_any_kind)
@settings(max_examples=300)
def test_every_world_settles_on_what_is_wanted(wanted: Wanted, processes: list[Process]) -> None:
    """Carry the plans out where every start becomes ready and every goodbye is said: the world must come to rest."""
    now_s = 100.0
    for step in range(60):
        plan = plan_processes(wanted, processes, Crashes(), now_s)
        processes = carry_out(plan, wanted, processes, now_s, step)
        live = sum(item.phase in LIVE for item in processes)
        assert live <= max(wanted.replicas + wanted.surge, 8)
        now_s += 100.0

    assert [(item.revision, item.phase) for item in processes] == [(NEW, Phase.READY)] * wanted.replicas
    assert plan_processes(wanted, processes, Crashes(), now_s) == ProcessPlan(wake_s=None)


def carry_out(plan: ProcessPlan, wanted: Wanted, processes: list[Process], now_s: float, step: int) -> list[Process]:
    """One turn of a well-behaved world."""
    after = []
    for item in processes:
        if item.name in plan.kill:
            continue
        if item.name in plan.leave:
            after.append(dataclasses.replace(item, phase=Phase.LEAVING, since_s=now_s))
        elif item.name in plan.terminate:
            after.append(dataclasses.replace(item, phase=Phase.DRAINING, since_s=now_s))
        elif item.phase is Phase.STARTING:
            after.append(dataclasses.replace(item, phase=Phase.READY, since_s=now_s))
        else:
            after.append(item)
    started = [Process(f"s{step}-{number}", wanted.revision, Phase.STARTING, now_s) for number in range(plan.start)]
    return after + started
