"""Judge canaries: a state machine from measurements to a share of the traffic, kept in the service's status.

    Pending -> Running                                     without analysis
    Pending -> Analysing -> (steps) -> Succeeded           with it
    any of them -> Aborted                                 worse than allowed, not judged in time, or never ready

Aborted is final until the canary's spec changes: a canary that failed must not come back by itself. No data is neither
good nor bad; only the deadline ends the waiting for some. Whatever the state, a canary that is not ready gets nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.v1alpha1.canary import (
    CanaryAnalysis,
    CanaryAnalysisStatus,
    CanaryMeasure,
    CanaryMetric,
    CanaryMetricType,
    CanaryPhase,
    CanaryStatus,
    Comparison,
    Verdict,
)
from windlass_operator.api.v1alpha1.inference_service import Canary
from windlass_operator.domain.snapshot import Workload

DEFAULT_INTERVAL_S: Final = 60
DEFAULT_DEADLINE_S: Final = 3600
DEFAULT_FAILURE_LIMIT: Final = 2
DEFAULT_PASSES: Final = 5
DEFAULT_MIN_REQUESTS: Final = 20
CALM_INTERVAL_S: Final = 300
"""Least time between two checks of a canary that has passed: each is a write of the status, and some stay for weeks."""
FIRST_TOKEN_QUANTILE: Final = 0.95
_UNITS: Final = {
    CanaryMetricType.ERROR_RATE: " %",
    CanaryMetricType.TIME_TO_FIRST_TOKEN: " ms",
    CanaryMetricType.TOKENS_PER_SECOND: " tokens/s",
    CanaryMetricType.QUALITY_PROBE: " %",
}


@dataclass(frozen=True, slots=True)
class RevisionReading:
    """What one revision did within an interval."""

    finished: float = 0.0
    """Requests answered or failed; those that clients left or that were turned away do not count."""
    failed: float = 0.0
    first_tokens: tuple[tuple[float, float], ...] = ()
    """Times to first token: upper bound in seconds and requests up to it, rising, the last bound infinite."""
    tokens: float = 0.0
    """Tokens after the first one of their request."""
    token_seconds: float = 0.0
    """Time that streams waited for them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured for one check."""

    canary: RevisionReading = RevisionReading()
    stable: RevisionReading = RevisionReading()
    agreement: float | None = None
    """Percent of the stable revision's words that the canary repeated; None: not asked, or no answer."""
    prompts: int = 0
    problem: str = ""
    """Why something could not be measured; empty while all could."""


@dataclass(frozen=True, slots=True)
class _Value:
    """One metric of one revision; None: no data."""

    number: float | None
    samples: int


def spec_hash(canary: Canary) -> str:
    """Changes exactly when a user changes the canary. Defaults are left out: a release that adds a field must not bring
    an aborted canary back.
    """
    text = json.dumps(canary.model_dump(mode="json", by_alias=True, exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_aborted(canary: Canary, statuses: Sequence[CanaryStatus]) -> bool:
    """Whether a canary, as it stands, has failed."""
    found = next((status for status in statuses if status.name == canary.name), None)
    return found is not None and found.phase is CanaryPhase.ABORTED and found.spec_hash == spec_hash(canary)


def interval_s(analysis: CanaryAnalysis) -> int:
    """Time between two checks, which is also how far each looks back."""
    return DEFAULT_INTERVAL_S if analysis.interval_seconds is None else analysis.interval_seconds


def _first_check_s(analysis: CanaryAnalysis) -> int:
    return interval_s(analysis) if analysis.start_delay_seconds is None else analysis.start_delay_seconds


def next_check_s(canary: Canary, status: CanaryStatus, now: str) -> float | None:
    """Seconds until the canary has to be looked at again, 0 when it is due; None while nothing is awaited."""
    analysis, state = canary.analysis, status.analysis
    if analysis is None or state is None or not state.since or status.phase is CanaryPhase.ABORTED:
        return None
    if state.checked:
        calm = status.phase is CanaryPhase.SUCCEEDED and state.failed == 0 and status.ready_replicas > 0
        waited = _seconds_between(state.checked, now)
        needed = max(CALM_INTERVAL_S, interval_s(analysis)) if calm else interval_s(analysis)
    else:
        waited, needed = _seconds_between(state.since, now), _first_check_s(analysis)
    left = float(max(0, needed - waited))
    if status.phase is CanaryPhase.SUCCEEDED:
        return left
    return min(left, float(max(0, _deadline_s(analysis) - _seconds_between(state.since, now))))


def check_is_due(canary: Canary, status: CanaryStatus, now: str) -> bool:
    """Whether a measurement should be made now."""
    return next_check_s(canary, status, now) == 0


def advance(
    canary: Canary,
    before: CanaryStatus | None,
    runs: Workload,
    reading: Reading | None,
    now: str,
    *,
    suspended: bool = False,
) -> CanaryStatus:
    """Return the state after `now`. `reading` is what a check measured, None between checks."""
    digest = spec_hash(canary)
    if before is None or before.spec_hash != digest:
        before = CanaryStatus(name=canary.name, spec_hash=digest)
    state = before.model_copy(
        update={"replicas": runs.replicas, "ready_replicas": runs.ready, "accelerator_class": runs.gpu_class}
    )
    if suspended and state.phase is not CanaryPhase.ABORTED:
        state = _enter(
            state.model_copy(update={"analysis": None}), CanaryPhase.PENDING, "Suspended", "spec.suspend is true"
        )
    elif state.phase is not CanaryPhase.ABORTED:
        state = _follow(canary, state, runs, reading, now)
    return state.model_copy(update={"traffic_percent": _weight(canary, state)})


def _follow(canary: Canary, state: CanaryStatus, runs: Workload, reading: Reading | None, now: str) -> CanaryStatus:
    if canary.analysis is None:
        if state.ready_replicas == 0:
            return _enter(state, CanaryPhase.PENDING, *_explain_waiting(runs))
        return _enter(state, CanaryPhase.RUNNING, "Serving", "ready; nobody judges it, because analysis is not set")
    if state.analysis is None or not state.analysis.since:
        return _start(canary.analysis, state, runs, now)
    checked = state
    if check_is_due(canary, state, now):
        if state.ready_replicas == 0:
            checked = _fail_unready(canary.analysis, state, runs, now)
        elif reading is not None:
            checked = _check(canary, canary.analysis, state, reading, now)
    return _enforce_deadline(canary.analysis, checked, now)


def _start(analysis: CanaryAnalysis, state: CanaryStatus, runs: Workload, now: str) -> CanaryStatus:
    if state.ready_replicas == 0:
        return _enter(state, CanaryPhase.PENDING, *_explain_waiting(runs))
    begun = state.model_copy(update={"analysis": CanaryAnalysisStatus(since=now)})
    return _enter(begun, CanaryPhase.ANALYSING, "AnalysisStarted", f"first check after {_first_check_s(analysis)} s")


def _explain_waiting(runs: Workload) -> tuple[str, str]:
    if runs.pending_reason:
        return "PodsPending", f"not ready: {runs.pending_reason}"
    if runs.last_failure is not None:
        return "ReplicaFailed", f"not ready: {runs.last_failure.reason} {runs.last_failure.message}".strip()
    return "NotReady", f"{runs.ready} of {runs.wanted} replicas are ready"


def _fail_unready(analysis: CanaryAnalysis, state: CanaryStatus, runs: Workload, now: str) -> CanaryStatus:
    """A canary that was ready and is not any more has failed this check: it answers nobody."""
    return _count_failure(analysis, state, (), f"no replica is ready any more; {_explain_waiting(runs)[1]}", now)


def _check(canary: Canary, analysis: CanaryAnalysis, state: CanaryStatus, reading: Reading, now: str) -> CanaryStatus:
    measures = tuple(judge(metric, analysis, reading) for metric in analysis.metrics)
    verdicts = {measure.verdict for measure in measures}
    if Verdict.FAILED in verdicts:
        words = "; ".join(describe(measure) for measure in measures if measure.verdict is Verdict.FAILED)
        return _count_failure(analysis, state, measures, words, now)
    if Verdict.NO_DATA in verdicts:
        return _await_data(state, measures, reading, now)
    return _count_pass(canary, analysis, state, measures, now)


def _count_failure(
    analysis: CanaryAnalysis, state: CanaryStatus, measures: Sequence[CanaryMeasure], words: str, now: str
) -> CanaryStatus:
    assert state.analysis is not None
    failed, limit = state.analysis.failed + 1, analysis.failure_limit or DEFAULT_FAILURE_LIMIT
    counted = _with_check(state, now, measures, failed=failed)
    if failed >= limit:
        return _enter(counted, CanaryPhase.ABORTED, "AnalysisFailed", f"{words}; {failed} failed in a row")
    return _enter(counted, state.phase, "CheckFailed", f"{words}; {failed} failed in a row, {limit} abort")


def _await_data(state: CanaryStatus, measures: Sequence[CanaryMeasure], reading: Reading, now: str) -> CanaryStatus:
    """Leave both counters: neither did it fail again, nor has it shown that it can."""
    missing = ", ".join(f"{measure.type.value} ({measure.samples})" for measure in measures if not measure.value)
    why = f"; {reading.problem}" if reading.problem else ""
    return _enter(_with_check(state, now, measures), state.phase, "NoData", f"too few samples for {missing}{why}")


def _count_pass(
    canary: Canary, analysis: CanaryAnalysis, state: CanaryStatus, measures: Sequence[CanaryMeasure], now: str
) -> CanaryStatus:
    assert state.analysis is not None
    passed, needed = state.analysis.passed + 1, analysis.passes or DEFAULT_PASSES
    shares = _shares(canary)
    words = "; ".join(describe(measure) for measure in measures)
    if state.phase is CanaryPhase.SUCCEEDED:
        return _enter(_with_check(state, now, measures, failed=0), state.phase, "AnalysisPassed", words)
    if passed < needed:
        counted = _with_check(state, now, measures, passed=passed, failed=0)
        return _enter(counted, state.phase, "CheckPassed", f"{words}; {passed} of {needed} passed")
    step = state.analysis.step + 1
    if step < len(shares):
        counted = _with_check(state, now, measures, step=step, passed=0, failed=0)
        return _enter(counted, state.phase, "StepPassed", f"{words}; goes on with {shares[step]} %")
    counted = _with_check(state, now, measures, passed=passed, failed=0)
    return _enter(counted, CanaryPhase.SUCCEEDED, "AnalysisPassed", words)


def _enforce_deadline(analysis: CanaryAnalysis, state: CanaryStatus, now: str) -> CanaryStatus:
    if state.phase is not CanaryPhase.ANALYSING or state.analysis is None:
        return state
    deadline = _deadline_s(analysis)
    if _seconds_between(state.analysis.since, now) < deadline:
        return state
    message = f"not all checks passed within {deadline} s; last: {state.message or 'no check was made'}"
    return _enter(state, CanaryPhase.ABORTED, "DeadlineExceeded", message)


def _deadline_s(analysis: CanaryAnalysis) -> int:
    return DEFAULT_DEADLINE_S if analysis.deadline_seconds is None else analysis.deadline_seconds


def _shares(canary: Canary) -> tuple[int, ...]:
    """The shares a canary goes through; steps at or above the last one are no steps."""
    steps = canary.analysis.steps if canary.analysis is not None else []
    return (*sorted({step for step in steps if step < canary.traffic_percent}), canary.traffic_percent)


def _weight(canary: Canary, state: CanaryStatus) -> int:
    if state.phase in (CanaryPhase.PENDING, CanaryPhase.ABORTED) or state.ready_replicas == 0:
        return 0
    shares = _shares(canary)
    return shares[min(state.analysis.step, len(shares) - 1)] if state.analysis is not None else shares[-1]


def _enter(state: CanaryStatus, phase: CanaryPhase, reason: str, message: str) -> CanaryStatus:
    text = message if len(message) <= 1024 else message[:1021] + "..."
    return state.model_copy(update={"phase": phase, "reason": reason, "message": text})


def _with_check(state: CanaryStatus, now: str, measures: Sequence[CanaryMeasure], **counters: int) -> CanaryStatus:
    assert state.analysis is not None
    update: dict[str, object] = {"checked": now, "measures": list(measures), **counters}
    return state.model_copy(update={"analysis": state.analysis.model_copy(update=update)})


# -- measures ----------------------------------------------------------------------------------------------------------


def judge(metric: CanaryMetric, analysis: CanaryAnalysis, reading: Reading) -> CanaryMeasure:
    """Hold one metric against its bound."""
    fewest = analysis.min_requests or DEFAULT_MIN_REQUESTS
    value = _measure(metric.type, reading, reading.canary)
    against_stable = metric.comparison is Comparison.STABLE
    stable = _measure(metric.type, reading, reading.stable) if against_stable else _Value(None, 0)
    needed = 1 if metric.type is CanaryMetricType.QUALITY_PROBE else fewest
    known = value.number is not None and value.samples >= needed
    if against_stable:
        known = known and stable.number is not None and stable.samples >= fewest
    measure = CanaryMeasure(type=metric.type, verdict=Verdict.NO_DATA, samples=value.samples)
    if not known or value.number is None:
        return measure
    bound = _bound(metric, stable.number)
    holds = value.number >= bound if _more_is_better(metric.type) else value.number <= bound
    return measure.model_copy(
        update={
            "verdict": Verdict.PASSED if holds else Verdict.FAILED,
            "value": _text(value.number),
            "stable": "" if stable.number is None else _text(stable.number),
            "bound": _text(bound),
        }
    )


def describe(measure: CanaryMeasure) -> str:
    """Say what a measure found."""
    unit = _UNITS[measure.type]
    side = "at least" if _more_is_better(measure.type) else "at most"
    stable = f", the stable revision has {measure.stable}{unit}" if measure.stable else ""
    return (
        f"{measure.type.value} {measure.value}{unit}, expected {side} {measure.bound}{unit}{stable} "
        f"({measure.samples} samples)"
    )


def agreement(stable: Sequence[str], canary: Sequence[str]) -> float:
    """Percent of the stable revision's words that the canary repeats before it says something else; mean of all."""
    shares = [_repeated(one.split(), other.split()) for one, other in zip(stable, canary, strict=True)]
    return 100 * sum(shares) / len(shares) if shares else 0.0


def _repeated(stable: Sequence[str], canary: Sequence[str]) -> float:
    if not stable:
        return 0.0 if canary else 1.0
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(stable, canary, strict=False))
    return sum(1 for _ in same) / len(stable)


def quantile_s(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Value below which a share of the observations lies, as Prometheus estimates it; infinite beyond the last finite
    bound, None without observations.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    rank = share * total
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            inside = count - below
            return bound if math.isinf(bound) or inside <= 0 else low + (bound - low) * (rank - below) / inside
        low, below = bound, count
    return math.inf


def _measure(kind: CanaryMetricType, reading: Reading, revision: RevisionReading) -> _Value:
    match kind:
        case CanaryMetricType.ERROR_RATE:
            rate = 100 * revision.failed / revision.finished if revision.finished > 0 else None
            return _Value(rate, _whole(revision.finished))
        case CanaryMetricType.TIME_TO_FIRST_TOKEN:
            seconds = quantile_s(revision.first_tokens, FIRST_TOKEN_QUANTILE)
            samples = revision.first_tokens[-1][1] if revision.first_tokens else 0.0
            return _Value(None if seconds is None else 1000 * seconds, _whole(samples))
        case CanaryMetricType.TOKENS_PER_SECOND:
            speed = revision.tokens / revision.token_seconds if revision.token_seconds > 0 else None
            return _Value(speed, _whole(revision.finished))
        case CanaryMetricType.QUALITY_PROBE:
            return _Value(reading.agreement, reading.prompts if reading.agreement is not None else 0)


def _bound(metric: CanaryMetric, stable: float | None) -> float:
    if stable is None:
        return float(metric.threshold)
    if metric.type is CanaryMetricType.ERROR_RATE:
        return stable + metric.threshold
    factor = metric.threshold / 100
    return stable * (1 - factor) if _more_is_better(metric.type) else stable * (1 + factor)


def _more_is_better(kind: CanaryMetricType) -> bool:
    return kind in (CanaryMetricType.TOKENS_PER_SECOND, CanaryMetricType.QUALITY_PROBE)


def _whole(count: float) -> int:
    return math.floor(count + 1e-6)


def _text(number: float) -> str:
    """A decimal, short enough for a status."""
    return "inf" if math.isinf(number) else f"{number:.4g}" if abs(number) < 1e4 else f"{number:.0f}"


def _seconds_between(earlier: str, later: str) -> int:
    """Whole seconds between two RFC 3339 times."""
    return int((datetime.datetime.fromisoformat(later) - datetime.datetime.fromisoformat(earlier)).total_seconds())


def find_status(statuses: Sequence[CanaryStatus], name: str) -> CanaryStatus | None:
    """The status of a canary; None before there is one."""
    return next((status for status in statuses if status.name == name), None)
