"""A tenant's GPUs: nobody is evicted by a newcomer, nothing is promised twice, and input order is no matter."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_operator.domain.quota import ClassTerms, Grant, Request, Terms
from windlass_operator.domain.sharing import share_cohort
from windlass_operator.domain.snapshot import Key


def build_request(
    name: str,
    least: int = 1,
    most: int | None = None,
    *,
    created: str = "2026-01-01",
    held: int = 0,
    held_class: str = "h200",
    classes: tuple[str, ...] = ("h200",),
    per_replica: int = 1,
    promised: int = 0,
) -> Request:
    return Request(
        Key("InferenceService", "team-a", name),
        created,
        classes,
        least,
        least if most is None else most,
        per_replica,
        held_class if held else "",
        held,
        promised_devices=promised,
    )


def share_quota(requests: Iterable[Request], nominal: Mapping[str, int]) -> dict[Key, Grant]:
    """Share among the services of one tenant that has no cohort."""
    return share_cohort([Terms("", {name: ClassTerms(count) for name, count in nominal.items()})], requests)


def share(*requests: Request, **nominal: int) -> dict[str, tuple[str, int]]:
    grants = share_quota(requests, nominal)
    return {key.name: (grant.gpu_class, grant.replicas) for key, grant in grants.items()}


@pytest.mark.parametrize(
    ("requests", "nominal", "expected"),
    [
        pytest.param([build_request("a", 2), build_request("b", 2)], 4, {"a": 2, "b": 2}, id="both fit"),
        pytest.param(
            [build_request("a", 3), build_request("b", 2)],
            4,
            {"a": 3, "b": 0},
            id="same age: the name decides, and a newcomer gets all or nothing",
        ),
        pytest.param(
            [build_request("a", 3, created="2026-02-02"), build_request("b", 2)],
            4,
            {"a": 0, "b": 2},
            id="the older is served first",
        ),
        pytest.param(
            [build_request("a", 3), build_request("b", 2, created="2026-02-02", held=2)],
            4,
            {"a": 0, "b": 2},
            id="running replicas stay, though their service is younger",
        ),
        pytest.param(
            [build_request("a", 1, 6), build_request("b", 1, 6)],
            4,
            {"a": 2, "b": 2},
            id="everybody's minimum, then growth in turns",
        ),
        pytest.param(
            [build_request("a", 1, 2), build_request("b", 1, 9), build_request("c", 1, 9)],
            9,
            {"a": 2, "b": 4, "c": 3},
            id="the older gets the odd one",
        ),
        pytest.param(
            [build_request("a", 1, 6, held=3), build_request("b", 1)],
            4,
            {"a": 3, "b": 1},
            id="growth already used is not taken back",
        ),
        pytest.param(
            [build_request("a", 4, held=2), build_request("b", 1)],
            4,
            {"a": 4, "b": 0},
            id="a running older service tops up before a newcomer",
        ),
        pytest.param(
            [build_request("a", 4, held=2), build_request("b", 1, held=1)],
            4,
            {"a": 3, "b": 1},
            id="topping up takes what is left",
        ),
        pytest.param([build_request("a", 4, held=4)], 2, {"a": 4}, id="a lowered quota evicts nobody"),
        pytest.param([build_request("a", 4, held=2)], 2, {"a": 2}, id="but lets nobody grow"),
        pytest.param(
            [build_request("a", 2, held=5), build_request("b", 1)],
            5,
            {"a": 2, "b": 0},
            id="pods that still stop count until they are gone",
        ),
        pytest.param(
            [build_request("a", 0), build_request("b", 2)],
            2,
            {"a": 0, "b": 2},
            id="a suspended service reserves nothing",
        ),
        pytest.param([build_request("a", 2, per_replica=2)], 3, {"a": 0}, id="devices are counted, not replicas"),
        pytest.param([build_request("a", 1)], 0, {"a": 0}, id="no quota, no GPU"),
    ],
)
def test_gpus_are_shared_by_age_without_evicting_anybody(requests, nominal, expected):
    assert {name: replicas for name, (_, replicas) in share(*requests, h200=nominal).items()} == expected


def test_a_service_falls_back_to_a_class_with_quota():
    assert share(build_request("a", 2, classes=("h200", "a100")), h200=1, a100=2) == {"a": ("a100", 2)}


def test_a_class_that_is_not_listed_grants_nothing():
    assert share(build_request("a", classes=("b200",)), h200=8) == {"a": ("b200", 0)}


def test_a_service_moving_to_another_class_is_counted_in_both_until_it_has_left():
    moving = build_request("a", 2, classes=("a100",), held=2, held_class="h200")

    assert share(moving, build_request("b", 1), h200=2, a100=2) == {"a": ("a100", 2), "b": ("h200", 0)}


def test_a_refusal_counts_what_stood_in_the_way_not_what_grew_later():
    grants = share_quota([build_request("a", 1, 4), build_request("b", 4)], {"h200": 4})

    refused = grants[Key("InferenceService", "team-a", "b")]
    assert (refused.replicas, refused.used, refused.nominal) == (0, 1, 4)


classes = st.sampled_from(["h200", "a100", "l4"])
requests_strategy = st.lists(
    st.builds(
        lambda name, day, order, least, growth, held, held_class, per_replica: Request(
            Key("InferenceService", "team-a", f"s{name}"),
            f"2026-01-{day:02}",
            tuple(dict.fromkeys(order)),
            least,
            least + growth,
            per_replica,
            held_class if held else "",
            held * per_replica,
        ),
        st.integers(0, 30),
        st.integers(1, 9),
        st.lists(classes, min_size=1, max_size=3),
        st.integers(0, 5),
        st.integers(0, 5),
        st.integers(0, 4),
        classes,
        st.sampled_from([1, 2, 4, 8]),
    ),
    max_size=10,
    unique_by=lambda request: request.key,
)
nominal_strategy = st.dictionaries(classes, st.integers(0, 40))


@settings(deadline=None)
@given(requests_strategy, nominal_strategy)
def test_grants_never_exceed_the_quota_beyond_what_already_runs(requests, nominal):
    grants = share_quota(requests, nominal)

    for gpu_class in ("h200", "a100", "l4"):
        held = sum(request.held_devices for request in requests if request.held_class == gpu_class)
        promised = sum(
            max(
                grants[request.key].replicas * request.devices_per_replica
                if grants[request.key].gpu_class == gpu_class
                else 0,
                request.held_devices if request.held_class == gpu_class else 0,
            )
            for request in requests
        )
        assert promised <= max(nominal.get(gpu_class, 0), held)


@settings(deadline=None)
@given(requests_strategy, nominal_strategy, st.integers())
def test_grants_do_not_depend_on_the_order_of_requests(requests, nominal, seed):
    shuffled = random.Random(seed).sample(requests, len(requests))

    assert share_quota(shuffled, nominal) == share_quota(requests, nominal)


@settings(deadline=None)
@given(requests_strategy, nominal_strategy)
def test_a_service_on_its_preferred_class_keeps_what_it_runs(requests, nominal):
    grants = share_quota(requests, nominal)

    for request in requests:
        if request.held_class == request.classes[0]:
            kept = min(request.held_devices // request.devices_per_replica, request.most)
            assert grants[request.key].gpu_class == request.held_class
            assert grants[request.key].replicas >= kept


@settings(deadline=None)
@given(requests_strategy, nominal_strategy)
def test_a_newcomer_runs_in_full_or_not_at_all_and_nobody_exceeds_the_maximum(requests, nominal):
    grants = share_quota(requests, nominal)

    for request in requests:
        granted = grants[request.key].replicas
        assert granted <= request.most
        if not request.held_devices:
            assert granted == 0 or granted >= request.least


@settings(deadline=None)
@given(requests_strategy, nominal_strategy)
def test_granting_twice_changes_nothing_once_the_first_grant_runs(requests, nominal):
    """Pods start as granted; planning again over that world must agree, or fleets would swing."""
    fresh = [request for request in requests if not request.held_devices]
    first = share_quota(fresh, nominal)
    running = [
        Request(
            request.key,
            request.created,
            (first[request.key].gpu_class, *(name for name in request.classes if name != first[request.key].gpu_class)),
            request.least,
            request.most,
            request.devices_per_replica,
            first[request.key].gpu_class if first[request.key].replicas else "",
            first[request.key].replicas * request.devices_per_replica,
        )
        for request in fresh
    ]

    second = share_quota(running, nominal)

    assert {key: (grant.gpu_class, grant.replicas) for key, grant in second.items() if first[key].replicas} == {
        key: (grant.gpu_class, grant.replicas) for key, grant in first.items() if grant.replicas
    }


@pytest.mark.parametrize(
    ("others", "spare"),
    [
        pytest.param([], 2, id="what no pod holds"),
        pytest.param([build_request("new")], 1, id="less what a newcomer was given, which may start at any moment"),
        pytest.param([build_request("grown", 1, 9, held=1)], 1, id="and not less what autoscalers may grow into"),
        pytest.param([build_request("rolls", held=1, promised=1)], 1, id="nor what rollouts have: they take turns"),
    ],
)
def test_a_rollout_may_use_devices_that_nobody_is_about_to_use(others, spare):
    grants = share_quota([build_request("chat", held=1), *others], {"h200": 3})

    assert grants[Key("InferenceService", "team-a", "chat")].spare_devices == spare


@pytest.mark.parametrize(("nominal", "replicas"), [(2, 0), (3, 1)])
def test_a_newcomer_waits_for_a_device_that_a_rollout_was_told_it_may_use(nominal, replicas):
    given = share(build_request("rolls", held=1, promised=1), build_request("new"), h200=nominal)

    assert given == {"rolls": ("h200", 1), "new": ("h200", replicas)}
