import pytest

from windlass_runtime.errors import QueueFull, RequestError
from windlass_runtime.scheduling.admission import Admission


def test_one_more_than_running_plus_queued_is_refused_and_counts_nothing() -> None:
    admission = Admission(max_running=2, max_queued=1)
    admission.admit("a", sequences=3, tokens=30, tokens_per_s=0)

    with pytest.raises(QueueFull, match="3 sequences in the replica, 1 more asked for, limit 3"):
        admission.admit("a", sequences=1, tokens=10, tokens_per_s=0)

    assert (admission.in_house, admission.backlog_tokens) == (3, 30)
    admission.leave("a", sequences=1, tokens=10)
    admission.admit("a", sequences=1, tokens=10, tokens_per_s=0)


def test_more_sequences_than_ever_fit_are_the_clients_fault() -> None:
    with pytest.raises(RequestError) as caught:
        Admission(max_running=2, max_queued=1).admit("a", sequences=4, tokens=1, tokens_per_s=0)

    assert caught.value.parameter == "n"


def test_a_tenant_that_fills_the_house_turns_away_nobody_who_holds_less_than_a_share() -> None:
    admission = Admission(max_running=4, max_queued=4)
    admission.admit("flooder", sequences=8, tokens=1, tokens_per_s=0)

    for _ in range(4):
        admission.admit("victim", sequences=1, tokens=1, tokens_per_s=0)

    with pytest.raises(QueueFull):
        admission.admit("flooder", sequences=1, tokens=1, tokens_per_s=0)
    with pytest.raises(QueueFull):
        admission.admit("victim", sequences=1, tokens=1, tokens_per_s=0)
    admission.admit("third", sequences=2, tokens=1, tokens_per_s=0)


def test_the_house_never_holds_more_than_twice_its_limit() -> None:
    admission = Admission(max_running=4, max_queued=4)
    for number in range(100):
        try:
            admission.admit(f"tenant-{number}", sequences=1, tokens=1, tokens_per_s=0)
        except QueueFull:
            break

    assert admission.in_house <= 16


@pytest.mark.parametrize(
    ("tokens", "tokens_per_s", "expected_s"),
    [
        pytest.param(400, 10.0, 20.0, id="average work of a sequence at the present speed"),
        pytest.param(400, 0.0, 1.0, id="unknown speed"),
        pytest.param(4, 100.0, 1.0, id="never below a second"),
        pytest.param(10**9, 1.0, 60.0, id="never above a minute"),
    ],
)
def test_the_retry_estimate_follows_backlog_and_speed(tokens: int, tokens_per_s: float, expected_s: float) -> None:
    admission = Admission(max_running=2, max_queued=0)
    admission.admit("a", sequences=2, tokens=tokens, tokens_per_s=0)

    with pytest.raises(QueueFull) as caught:
        admission.admit("a", sequences=1, tokens=1, tokens_per_s=tokens_per_s)

    assert caught.value.retry_after_s == expected_s
