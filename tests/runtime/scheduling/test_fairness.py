"""Whole schedules in virtual time: what tenants do to each other, and what they cannot."""

import dataclasses
import math
import random

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from windlass_runtime.scheduling.scheduler import Limits
from windlass_runtime.simulate.profile import NAMED, Profile
from windlass_runtime.simulate.traces import build_flood, build_trace
from windlass_runtime.simulate.virtual_time import Arrival, Served, VirtualReplica, quantile, run_trace

# Examples are whole schedules; making a failing one smaller takes minutes.
NO_SHRINKING = tuple(phase for phase in Phase if phase is not Phase.shrink)
H200 = NAMED["h200-8b"]
LIMITS = Limits(step_tokens=512, max_running=64, page_tokens=64, max_sequence_tokens=8192)


def first_tokens(results: list[Served], tenant: str) -> list[float]:
    return [served.time_to_first_token_s for served in results if served.arrival.tenant == tenant]


def as_one_tenant(arrivals: list[Arrival]) -> list[Arrival]:
    """Without tenants, arrival order alone decides: first come, first served."""
    return [dataclasses.replace(arrival, tenant="") for arrival in arrivals]


def test_a_flooder_of_ten_times_the_load_raises_a_victims_p95_to_first_token_by_less_than_a_third() -> None:
    victim, flood = build_flood(victim_requests_per_s=2, flood_factor=10, seconds=40, seed=1)

    solo = run_trace(victim, LIMITS, H200)
    fair = run_trace([*victim, *flood], LIMITS, H200, until_s=40)
    in_order = run_trace(as_one_tenant([*victim, *flood]), LIMITS, H200, until_s=40)

    alone_s = quantile(first_tokens(solo, "victim"), 0.95)
    assert quantile(first_tokens(fair, "victim"), 0.95) <= 1.3 * alone_s
    marks = {(arrival.at_s, arrival.prompt_tokens) for arrival in victim}
    victims_s = [s.time_to_first_token_s for s in in_order if (s.arrival.at_s, s.arrival.prompt_tokens) in marks]
    assert quantile(victims_s, 0.95) > 20 * alone_s, "the trace is no flood if arrival order bears it"
    done = [sum(served.end_s < math.inf for served in results) for results in (fair, in_order)]
    assert done[0] >= 0.95 * done[1], "fairness costs next to no throughput"


def backlog(tenant: str, requests: int, prompt: int, output: int) -> list[Arrival]:
    return [Arrival(0.0, tenant, prompt, output) for _ in range(requests)]


@settings(max_examples=25, deadline=None, phases=NO_SHRINKING)
@given(
    prompts=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    outputs=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    weights=st.sampled_from([(1.0, 1.0), (1.0, 3.0), (2.0, 1.0)]),
    quantum=st.integers(1, 600),
    seed=st.integers(0, 100),
)
@example(prompts=(1, 1), outputs=(28, 1), weights=(1.0, 1.0), quantum=15, seed=28)  # b's line ends within a step
def test_the_service_of_two_backlogged_tenants_stays_within_one_quantum_and_one_step(
    prompts: tuple[int, int], outputs: tuple[int, int], weights: tuple[float, float], quantum: int, seed: int
) -> None:
    # Places and pages abound, so that the budget of a step is what they compete for.
    limits = Limits(128, 128, 16, 1024, 40, quantum, {"a": weights[0], "b": weights[1]})
    replica = VirtualReplica(limits, dataclasses.replace(H200, kv_pages=20_000, page_tokens=16))
    draw = random.Random(seed)
    for tenant, prompt, output in zip("ab", prompts, outputs, strict=True):
        for _ in range(400):
            replica.submit(Arrival(0.0, tenant, draw.randint(1, prompt), draw.randint(1, output)))
    tenants = replica.scheduler.roster.tenants
    most_per_step = 128 + 2 * 128

    accounts = [tenants[name].account for name in "ab"]

    for _ in range(60):
        if replica.scheduler.running_count > 100:
            break  # places begin to matter
        replica.step()
        if len(tenants) < 2 or not all(len(tenant.waiting) for tenant in tenants.values()):
            break  # one asked for no more within this step, so the other may have all of it
        a, b = (account.total / account.weight for account in accounts)
        assert abs(a - b) <= quantum + most_per_step / min(weights)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=25),
    max_running=st.integers(1, 6),
    pages=st.integers(20, 60),
)
def test_everybody_is_served_whatever_the_others_send(
    sizes: list[tuple[str, int, int]], max_running: int, pages: int
) -> None:
    limits = Limits(16, max_running, 4, 80, assumed_output_tokens=4)
    arrivals = [Arrival(number * 0.01, tenant, prompt, output) for number, (tenant, prompt, output) in enumerate(sizes)]

    results = run_trace(arrivals, limits, Profile(kv_pages=pages, page_tokens=4))

    assert all(served.end_s < math.inf for served in results)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 200), st.integers(1, 20)), min_size=1, max_size=30)
)
def test_no_token_of_the_budget_is_left_while_somebody_could_use_it(sizes: list[tuple[str, int, int]]) -> None:
    replica = VirtualReplica(Limits(64, 64, 16, 512), dataclasses.replace(H200, kv_pages=5_000, page_tokens=16))
    for tenant, prompt, output in sizes:
        replica.submit(Arrival(0.0, tenant, prompt, output))
    roster = replica.scheduler.roster

    while replica.scheduler.has_work:
        everybody = [*roster.running.values(), *(s for tenant in roster.tenants.values() for s in tenant.waiting)]
        could_use = sum(sequence.missing for sequence in everybody)
        assert replica.step().token_count == min(64, could_use)


def test_a_tenant_without_a_place_takes_one_from_the_tenant_with_most_and_nothing_is_recomputed() -> None:
    replica = VirtualReplica(dataclasses.replace(LIMITS, max_running=8), H200)
    for arrival in backlog("many", 20, prompt=64, output=200):
        replica.submit(arrival)
    for _ in range(5):
        replica.step()
    name = replica.submit(Arrival(replica.now_s, "few", 64, 5))

    plan = replica.step()

    assert name in plan.admitted
    assert len(plan.preempted) == 1
    parked = replica.scheduler.roster.parked[plan.preempted[0]]
    assert parked.computed == 64, "its full page stays"


def test_places_settle_at_equal_shares_and_are_not_pushed_to_and_fro() -> None:
    replica = VirtualReplica(dataclasses.replace(LIMITS, max_running=8), H200)
    for tenant in ("a", "b"):
        for arrival in backlog(tenant, 30, prompt=32, output=300):
            replica.submit(arrival)

    preempted = sum(len(replica.step().preempted) for _ in range(250))

    assert [len(tenant.running) for tenant in replica.scheduler.roster.tenants.values()] == [4, 4]
    assert preempted <= 4


def test_weights_share_places_and_tokens_in_proportion() -> None:
    limits = dataclasses.replace(LIMITS, max_running=8, weights={"gold": 3.0})
    replica = VirtualReplica(limits, H200)
    for tenant in ("gold", "plain"):
        for arrival in backlog(tenant, 60, prompt=32, output=50):
            replica.submit(arrival)

    for _ in range(320):
        replica.step()

    tenants = replica.scheduler.roster.tenants
    assert len(tenants["gold"].running) == 6
    assert tenants["gold"].account.total / tenants["plain"].account.total == pytest.approx(3, rel=0.2)


def test_an_urgent_request_overtakes_its_own_tenants_and_nobody_elses() -> None:
    limits = dataclasses.replace(LIMITS, max_running=4)
    arrivals = [*backlog("a", 10, 64, 50), *backlog("b", 10, 64, 50)]
    urgent = Arrival(0.1, "a", 64, 50, priority=-1)

    plain = run_trace(arrivals, limits, H200)
    results = run_trace([*arrivals, urgent], limits, H200)

    assert results[-1].time_to_first_token_s < quantile(first_tokens(plain, "a"), 0.5) / 2
    before, after = (sorted(first_tokens(run, "b")) for run in (plain, results))
    assert after[-1] <= before[-1] * 1.2


def test_among_equal_priorities_the_earlier_deadline_goes_first() -> None:
    limits = dataclasses.replace(LIMITS, max_running=1)
    arrivals = [
        Arrival(0.0, "a", 64, 5),
        Arrival(0.001, "a", 64, 5),
        Arrival(0.002, "a", 64, 5, deadline_s=9.0),
        Arrival(0.003, "a", 64, 5, deadline_s=1.0),
    ]

    results = run_trace(arrivals, limits, H200)

    assert sorted(range(4), key=lambda index: results[index].first_token_s) == [0, 3, 2, 1]


def test_a_request_too_large_for_the_moment_keeps_out_those_that_have_had_their_share() -> None:
    profile = dataclasses.replace(H200, kv_pages=40, page_tokens=16)
    limits = Limits(128, 32, 16, 640, assumed_output_tokens=8, quantum_tokens=200)
    stream = [Arrival(number * 0.005, "small", 64, 8) for number in range(600)]
    large = Arrival(0.05, "large", 560, 8)

    results = run_trace([*stream, large], limits, profile)

    (served,) = (served for served in results if served.arrival is large)
    assert served.first_token_s < 1.0, "the stream of small ones lasts three seconds"


def test_the_trace_of_a_seed_is_always_the_same() -> None:
    assert build_trace("a", 5, 10, seed=3) == build_trace("a", 5, 10, seed=3)
