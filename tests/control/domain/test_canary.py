"""The life of a canary: what a check finds, and where that leads."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.builders import build_canary, build_workload
from windlass_operator.api.v1alpha1.canary import CanaryPhase, CanaryStatus, Verdict
from windlass_operator.api.v1alpha1.inference_service import Canary, Failure
from windlass_operator.domain.canary import (
    Reading,
    RevisionReading,
    advance,
    agreement,
    check_is_due,
    is_aborted,
    judge,
    next_check_s,
    quantile_s,
    spec_hash,
)
from windlass_operator.domain.snapshot import Workload

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
READY = build_workload(1)
NOT_READY = Workload(replicas=1, wanted=1)
ERRORS = {"type": "ErrorRate", "threshold": 5}
GOOD = Reading(RevisionReading(100, 1), RevisionReading(900, 9))
BAD = Reading(RevisionReading(100, 50), RevisionReading(900, 9))
SILENT = Reading(problem="nobody asked")


def canary(*metrics: dict[str, Any], percent: int = 10, **analysis: Any) -> Canary:
    """A canary that is checked every minute; without metrics nobody judges it."""
    fields = {"analysis": {"metrics": list(metrics), "intervalSeconds": 60, **analysis}} if metrics else {}
    return Canary.model_validate(build_canary(percent=percent, **fields))


def at(seconds: float) -> str:
    return (START + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def live(item: Canary, readings: Iterable[Reading | None], runs: Workload = READY, step_s: int = 60) -> CanaryStatus:
    """What becomes of a canary that is looked at once per interval, ready from the start."""
    state = advance(item, None, READY, None, at(0))
    for number, reading in enumerate(readings, start=1):
        state = advance(item, state, runs, reading, at(number * step_s))
    return state


def outcome(state: CanaryStatus) -> tuple[CanaryPhase, int, str]:
    return state.phase, state.traffic_percent, state.reason


def test_a_canary_that_is_not_ready_gets_no_traffic() -> None:
    assert outcome(advance(canary(), None, NOT_READY, None, at(0))) == (CanaryPhase.PENDING, 0, "NotReady")


def test_a_canary_without_analysis_gets_its_share_once_it_is_ready() -> None:
    assert outcome(advance(canary(), None, READY, None, at(0))) == (CanaryPhase.RUNNING, 10, "Serving")


def test_why_a_canary_is_not_ready_is_told() -> None:
    failure = Failure(reason="OOMKilled", message="out of memory", time=at(0))

    pending = advance(canary(), None, Workload(pending_reason="0/3 nodes are available"), None, at(0))
    failed = advance(canary(), None, Workload(last_failure=failure), None, at(0))

    assert pending.message == "not ready: 0/3 nodes are available"
    assert failed.message == "not ready: OOMKilled out of memory"


def test_a_good_canary_succeeds_after_enough_passes_and_goes_on() -> None:
    item = canary(ERRORS, passes=3)

    states = [live(item, [GOOD] * count) for count in (2, 3, 9)]

    assert [outcome(state) for state in states] == [
        (CanaryPhase.ANALYSING, 10, "CheckPassed"),
        (CanaryPhase.SUCCEEDED, 10, "AnalysisPassed"),
        (CanaryPhase.SUCCEEDED, 10, "AnalysisPassed"),
    ]


def test_a_bad_canary_is_aborted_with_the_numbers() -> None:
    state = live(canary(ERRORS, failureLimit=2), [BAD, BAD])

    assert outcome(state) == (CanaryPhase.ABORTED, 0, "AnalysisFailed")
    assert state.message == "ErrorRate 50 %, expected at most 5 % (100 samples); 2 failed in a row"
    assert state.analysis is not None
    (measure,) = state.analysis.measures
    assert (measure.verdict, measure.value, measure.bound, measure.samples) == (Verdict.FAILED, "50", "5", 100)


def test_a_pass_between_two_failures_forgives_the_first() -> None:
    assert live(canary(ERRORS, failureLimit=2), [BAD, GOOD, BAD]).phase is CanaryPhase.ANALYSING


def test_a_canary_that_succeeded_is_aborted_when_it_turns_bad() -> None:
    assert live(canary(ERRORS, passes=1), [GOOD, BAD, BAD], step_s=300).phase is CanaryPhase.ABORTED


def test_a_canary_that_succeeded_is_checked_at_ease_until_a_check_fails() -> None:
    item = canary(ERRORS, passes=1, failureLimit=3)
    passed = live(item, [GOOD])
    failed = advance(item, passed, READY, BAD, at(360))

    assert next_check_s(item, passed, at(60)) == 300
    assert next_check_s(item, failed, at(360)) == 60


def test_no_data_is_not_success_and_ends_at_the_deadline() -> None:
    item = canary(ERRORS, passes=1, deadlineSeconds=600)

    waiting, ended = live(item, [SILENT] * 9), live(item, [SILENT] * 10)

    assert outcome(waiting) == (CanaryPhase.ANALYSING, 10, "NoData")
    assert outcome(ended) == (CanaryPhase.ABORTED, 0, "DeadlineExceeded")
    assert "too few samples for ErrorRate (0); nobody asked" in ended.message


def test_data_that_vanishes_after_success_changes_nothing() -> None:
    item = canary(ERRORS, passes=1, deadlineSeconds=120)

    assert outcome(live(item, [GOOD, *[SILENT] * 20])) == (CanaryPhase.SUCCEEDED, 10, "NoData")


def test_one_request_short_of_the_minimum_is_no_data() -> None:
    item = canary(ERRORS, minRequests=20, passes=1)

    below, enough = Reading(RevisionReading(19, 0)), Reading(RevisionReading(20, 0))

    assert live(item, [below]).reason == "NoData"
    assert live(item, [enough]).reason == "AnalysisPassed"


def test_a_canary_that_stops_being_ready_fails_its_checks_and_gets_nothing_meanwhile() -> None:
    state = live(canary(ERRORS, failureLimit=3), [None, None], runs=NOT_READY)

    assert outcome(state) == (CanaryPhase.ANALYSING, 0, "CheckFailed")
    assert live(canary(ERRORS, failureLimit=3), [None] * 3, runs=NOT_READY).phase is CanaryPhase.ABORTED


def test_steps_are_gone_through_in_rising_order() -> None:
    item = canary(ERRORS, percent=50, steps=[20, 5], passes=2)

    shares = [live(item, [GOOD] * count).traffic_percent for count in range(7)]

    assert shares == [5, 5, 20, 20, 50, 50, 50]
    assert live(item, [GOOD] * 6).phase is CanaryPhase.SUCCEEDED


def test_an_aborted_canary_stays_aborted_until_its_spec_changes() -> None:
    item, other = canary(ERRORS, failureLimit=1), canary(ERRORS, failureLimit=2)
    aborted = live(item, [BAD])

    later = advance(item, aborted, READY, GOOD, at(9999))
    changed = advance(other, aborted, READY, None, at(9999))

    assert outcome(later) == outcome(aborted) == (CanaryPhase.ABORTED, 0, "AnalysisFailed")
    assert is_aborted(item, [aborted])
    assert not is_aborted(other, [aborted])
    assert changed.phase is CanaryPhase.ANALYSING


def test_a_suspended_canary_is_not_judged_and_starts_anew() -> None:
    item = canary(ERRORS, failureLimit=1)
    running = live(item, [GOOD])

    suspended = advance(item, running, Workload(), None, at(600), suspended=True)
    resumed = advance(item, suspended, READY, None, at(1200))

    assert outcome(suspended) == (CanaryPhase.PENDING, 0, "Suspended")
    assert resumed.analysis is not None
    assert resumed.analysis.since == at(1200)


def test_the_hash_changes_with_what_a_user_wrote_and_with_nothing_else() -> None:
    written = canary(ERRORS)

    assert spec_hash(canary(ERRORS)) == spec_hash(written)
    assert spec_hash(canary(ERRORS, percent=11)) != spec_hash(written)
    assert spec_hash(canary(ERRORS, steps=[])) == spec_hash(written)
    assert spec_hash(Canary.model_validate(written.model_dump(by_alias=True))) == spec_hash(written)


def test_checks_come_after_the_delay_and_then_in_intervals() -> None:
    item = canary(ERRORS, startDelaySeconds=90)
    state = advance(item, None, READY, None, at(0))

    waits = [next_check_s(item, state, at(second)) for second in (0, 89, 90, 500)]
    checked = advance(item, state, READY, GOOD, at(90))

    assert waits == [90, 1, 0, 0]
    assert not check_is_due(item, checked, at(149))
    assert check_is_due(item, checked, at(150))


def test_the_deadline_is_not_slept_through() -> None:
    item = canary(ERRORS, startDelaySeconds=3600, deadlineSeconds=100)

    state = advance(item, None, READY, None, at(0))

    assert next_check_s(item, state, at(40)) == 60
    assert advance(item, state, READY, None, at(100)).reason == "DeadlineExceeded"


def test_a_reading_between_checks_counts_only_once() -> None:
    item = canary(ERRORS, passes=2)
    state = live(item, [GOOD])

    again = advance(item, state, READY, GOOD, at(61))

    assert again.analysis == state.analysis


FAST = RevisionReading(100, 0, ((0.1, 100), (math.inf, 100)), 1000, 10)
SLOW = RevisionReading(100, 0, ((0.1, 50), (1.0, 100), (math.inf, 100)), 1000, 20)


@pytest.mark.parametrize(
    ("metric", "reading", "verdict", "value", "bound"),
    [
        pytest.param(ERRORS, GOOD, Verdict.PASSED, "1", "5", id="errors"),
        pytest.param(
            {"type": "ErrorRate", "threshold": 1, "comparison": "Stable"},
            Reading(RevisionReading(100, 3), RevisionReading(100, 1)),
            Verdict.FAILED,
            "3",
            "2",
            id="errors against stable, in points",
        ),
        pytest.param(
            {"type": "TimeToFirstToken", "threshold": 200}, Reading(SLOW), Verdict.FAILED, "910", "200", id="ttft"
        ),
        pytest.param(
            {"type": "TimeToFirstToken", "threshold": 50, "comparison": "Stable"},
            Reading(SLOW, FAST),
            Verdict.FAILED,
            "910",
            "142.5",
            id="ttft against stable, in percent",
        ),
        pytest.param(
            {"type": "TokensPerSecond", "threshold": 60}, Reading(SLOW), Verdict.FAILED, "50", "60", id="speed"
        ),
        pytest.param(
            {"type": "TokensPerSecond", "threshold": 50, "comparison": "Stable"},
            Reading(SLOW, FAST),
            Verdict.PASSED,
            "50",
            "50",
            id="speed against stable, in percent",
        ),
        pytest.param(
            {"type": "QualityProbe", "threshold": 90},
            Reading(agreement=88.0, prompts=4),
            Verdict.FAILED,
            "88",
            "90",
            id="quality",
        ),
        pytest.param({"type": "QualityProbe", "threshold": 90}, GOOD, Verdict.NO_DATA, "", "", id="nobody was asked"),
        pytest.param(
            {"type": "ErrorRate", "threshold": 1, "comparison": "Stable"},
            Reading(RevisionReading(100, 0), RevisionReading(3, 0)),
            Verdict.NO_DATA,
            "",
            "",
            id="too little to compare with",
        ),
        pytest.param(
            {"type": "TimeToFirstToken", "threshold": 900_000},
            Reading(RevisionReading(100, 0, ((600.0, 10), (math.inf, 100)))),
            Verdict.FAILED,
            "inf",
            "900000",
            id="beyond every bucket",
        ),
    ],
)
def test_a_metric_is_held_against_its_bound(
    metric: dict[str, Any], reading: Reading, verdict: Verdict, value: str, bound: str
) -> None:
    analysis = canary(metric).analysis
    assert analysis is not None

    measure = judge(analysis.metrics[0], analysis, reading)

    assert (measure.verdict, measure.value, measure.bound) == (verdict, value, bound)


@pytest.mark.parametrize(
    ("stable", "other", "expected"),
    [
        pytest.param(["a b c d"], ["a b c d"], 100, id="the same"),
        pytest.param(["a b c d"], ["a b x d"], 50, id="up to the first other word"),
        pytest.param(["a b", "c d"], ["a b", "x d"], 50, id="the mean of all answers"),
        pytest.param([""], ["a"], 0, id="words where there were none"),
        pytest.param([""], [""], 100, id="silence twice"),
    ],
)
def test_agreement_is_the_share_of_repeated_words(stable: list[str], other: list[str], expected: float) -> None:
    assert agreement(stable, other) == expected


def test_a_quantile_is_estimated_as_prometheus_does() -> None:
    buckets = ((0.1, 50.0), (0.5, 90.0), (1.0, 100.0), (math.inf, 100.0))

    assert quantile_s(buckets, 0.95) == pytest.approx(0.75)
    assert quantile_s(((0.1, 0.0), (math.inf, 0.0)), 0.95) is None
    assert quantile_s((), 0.95) is None


readings = st.sampled_from([GOOD, BAD, SILENT, None])
histories = st.lists(st.tuples(readings, st.sampled_from([READY, NOT_READY]), st.integers(1, 200)), max_size=30)
canaries = st.builds(
    lambda percent, limit, passes, steps: canary(
        ERRORS, percent=percent, failureLimit=limit, passes=passes, steps=steps, deadlineSeconds=900
    ),
    st.integers(0, 100),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.integers(1, 100), max_size=3, unique=True),
)


@given(canaries, histories)
def test_whatever_happens_the_promises_hold(item: Canary, history: list[tuple[Reading | None, Workload, int]]) -> None:
    state, second, passed = advance(item, None, READY, None, at(0)), 0, 0
    for reading, runs, wait in history:
        second += wait
        before, due = state, check_is_due(item, state, at(second))
        state = advance(item, before, runs, reading, at(second))
        passed += reading is GOOD and due and runs is READY
        assert 0 <= state.traffic_percent <= item.traffic_percent
        assert state.traffic_percent == 0 or runs is READY
        assert before.phase is not CanaryPhase.ABORTED or state.phase is CanaryPhase.ABORTED
        assert state.phase is not CanaryPhase.ABORTED or state.traffic_percent == 0
        assert state.phase is not CanaryPhase.SUCCEEDED or passed > 0, "success without a single passed check"
        assert state.phase is not CanaryPhase.ANALYSING or second < 900, "judged beyond its deadline"


@given(canaries, histories)
def test_a_restart_at_any_moment_changes_nothing(
    item: Canary, history: list[tuple[Reading | None, Workload, int]]
) -> None:
    lasting = restarted = advance(item, None, READY, None, at(0))
    second = 0
    for reading, runs, wait in history:
        second += wait
        lasting = advance(item, lasting, runs, reading, at(second))
        stored = CanaryStatus.model_validate(restarted.model_dump(mode="json", by_alias=True, exclude_none=True))
        restarted = advance(item, stored, runs, reading, at(second))

    assert restarted == lasting
