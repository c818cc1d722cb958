"""Which hours hold, through changes to summer time, in every zone."""

from __future__ import annotations

import datetime
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.builders import build_service, build_snapshot
from windlass_operator.api.v1alpha1.scaling import Scaling, Weekday
from windlass_operator.domain.schedule import (
    Bounds,
    apply_schedules,
    bounds_at,
    describe_bounds,
    next_change,
    next_change_of_all,
    unknown_time_zones,
)
from windlass_operator.domain.snapshot import Key

OFFICE = {"name": "office", "timeZone": "Europe/Berlin", "start": "08:00", "end": "18:00", "minReplicas": 4}
WORKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
KEY = Key("InferenceService", "team-a", "chat")


def build_scaling(*schedules, least=1, most=9):
    return Scaling.model_validate({"minReplicas": least, "maxReplicas": most, "schedules": list(schedules)})


def utc(text):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("schedule", "moment", "holds"),
    [
        pytest.param(OFFICE, "2026-01-15T07:00", True, id="begins at eight in winter"),
        pytest.param(OFFICE, "2026-01-15T06:59", False, id="not before"),
        pytest.param(OFFICE, "2026-07-15T06:00", True, id="begins an hour earlier for the rest of the world in summer"),
        pytest.param(OFFICE, "2026-01-15T17:00", False, id="ends when it says"),
        pytest.param({**OFFICE, "days": WORKDAYS}, "2026-01-17T10:00", False, id="not on a Saturday"),
        pytest.param({**OFFICE, "days": WORKDAYS}, "2026-01-16T10:00", True, id="on a Friday"),
        pytest.param(
            {**OFFICE, "days": ["Friday"], "start": "22:00", "end": "06:00"},
            "2026-01-17T04:59",
            True,
            id="a night belongs to the day on which it begins",
        ),
        pytest.param(
            {**OFFICE, "days": ["Friday"], "start": "22:00", "end": "06:00"},
            "2026-01-16T04:00",
            False,
            id="and not to the day on which it ends",
        ),
        pytest.param({**OFFICE, "start": "00:00", "end": "00:00"}, "2026-01-15T23:30", True, id="a whole day"),
        # In 2026 Berlin skips 02:00 to 03:00 on 29 March, and shows that hour twice on 25 October.
        pytest.param({**OFFICE, "start": "02:30", "end": "04:00"}, "2026-03-29T01:30", True, id="a skipped start"),
        pytest.param({**OFFICE, "start": "02:30", "end": "04:00"}, "2026-03-29T01:29", False, id="comes later"),
        pytest.param(
            {**OFFICE, "start": "01:00", "end": "02:30"}, "2026-10-25T01:29", True, id="the second end counts"
        ),
        pytest.param(
            {**OFFICE, "start": "02:30", "end": "04:00"}, "2026-10-25T00:30", True, id="the first start counts"
        ),
        pytest.param({**OFFICE, "timeZone": "Asia/Kathmandu"}, "2026-01-15T02:15", True, id="zones of odd minutes"),
        pytest.param({**OFFICE, "timeZone": "Nowhere/Land"}, "2026-01-15T10:00", False, id="an unknown zone never"),
    ],
)
def test_a_schedule_holds_in_its_hours(schedule, moment, holds):
    found = bounds_at(build_scaling(schedule), utc(moment))

    assert found == (Bounds(4, 9, "office") if holds else Bounds(1, 9))


def test_the_first_of_several_schedules_counts():
    both = build_scaling({**OFFICE, "name": "peak", "start": "09:00", "end": "10:00", "minReplicas": 7}, OFFICE)

    assert bounds_at(both, utc("2026-01-15T08:30")) == Bounds(7, 9, "peak")
    assert bounds_at(both, utc("2026-01-15T09:30")) == Bounds(4, 9, "office")


def test_the_next_change_is_the_next_hour_that_says_something_else():
    scaling = build_scaling({**OFFICE, "days": ["Monday"]})

    assert next_change(scaling, utc("2026-01-15T10:00")) == utc("2026-01-19T07:00")
    assert next_change(scaling, utc("2026-01-19T07:00")) == utc("2026-01-19T17:00")


def test_a_schedule_of_all_hours_never_changes():
    scaling = build_scaling({**OFFICE, "start": "00:00", "end": "00:00"})

    assert next_change(scaling, utc("2026-01-15T10:00")) is None


def test_unknown_zones_are_named():
    scaling = build_scaling(OFFICE, {**OFFICE, "name": "other", "timeZone": "Mars/Base"})

    assert unknown_time_zones(scaling) == ("Mars/Base",)


def test_a_picture_is_seen_with_the_bounds_of_the_moment():
    service = build_service(scaling={"minReplicas": 1, "maxReplicas": 9, "schedules": [OFFICE]})
    snapshot = build_snapshot(service)

    by_day = apply_schedules(snapshot, utc("2026-01-15T10:00"))

    assert by_day.services[KEY].spec.scaling.min_replicas == 4
    assert by_day.services[KEY].spec.model is service.spec.model
    assert apply_schedules(snapshot, utc("2026-01-15T20:00")) is snapshot
    assert next_change_of_all(snapshot.services.values(), utc("2026-01-15T10:00")) == utc("2026-01-15T17:00")


def test_the_hours_are_told_in_words():
    scaling = build_scaling(OFFICE)

    assert describe_bounds(scaling, utc("2026-01-15T10:00")) == "schedule office holds until 2026-01-15T17:00:00Z"
    assert describe_bounds(scaling, utc("2026-01-15T20:00")) == "no schedule holds until 2026-01-16T07:00:00Z"
    assert describe_bounds(scaling, None) == "schedules are not applied here"
    assert describe_bounds(build_scaling(), utc("2026-01-15T10:00")) == ""


# Zones with hour, half-hour and no changes of the clock, on both sides of the date line and of the equator.
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Asia/Kathmandu",
    "America/Santiago",
    "Africa/Casablanca",
    "Etc/UTC",
)
TIMES = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
SCHEDULES = st.builds(
    lambda zone, days, start, end, least: {
        "timeZone": zone,
        "days": sorted(days),
        "start": start,
        "end": end,
        "minReplicas": least,
    },
    st.sampled_from(ZONES),
    st.sets(st.sampled_from([day.value for day in Weekday])),
    TIMES,
    TIMES,
    st.integers(0, 5),
)
MOMENTS = st.datetimes(datetime.datetime(2024, 1, 1), datetime.datetime(2030, 1, 1)).map(
    lambda naive: naive.replace(second=0, microsecond=0, tzinfo=datetime.UTC)
)


def named(schedules):
    return build_scaling(*({**item, "name": f"s{index}"} for index, item in enumerate(schedules)))


@given(st.lists(SCHEDULES, min_size=1, max_size=3).map(named), MOMENTS, st.floats(0, 0.99))
def test_nothing_changes_before_the_next_change_and_something_does_then(scaling, now, share):
    held, change = bounds_at(scaling, now), next_change(scaling, now)
    until = change if change is not None else now + datetime.timedelta(days=7)
    between = now + (until - now) * share

    assert bounds_at(scaling, between) == held
    assert change is None or (change > now and bounds_at(scaling, change) != held)


@given(SCHEDULES, MOMENTS)
def test_a_schedule_holds_at_its_wall_clock_hours_whatever_the_clock_does(schedule, now):
    """The rule in its plain form, away from the days on which the clock changes."""
    zone = zoneinfo.ZoneInfo(schedule["timeZone"])
    local = now.astimezone(zone)
    nearby = {(now + datetime.timedelta(days=day)).astimezone(zone).utcoffset() for day in (-2, -1, 0, 1, 2)}
    if len(nearby) > 1:
        return
    clock = local.strftime("%H:%M")
    names = [day.value for day in Weekday]
    today, yesterday = names[local.weekday()], names[local.weekday() - 1]
    days = schedule["days"] or names
    if schedule["start"] < schedule["end"]:
        expected = today in days and schedule["start"] <= clock < schedule["end"]
    else:
        evening = today in days and clock >= schedule["start"]
        morning = yesterday in days and clock < schedule["end"]
        expected = evening or morning

    assert (bounds_at(named([schedule]), now).schedule == "s0") is expected


@given(SCHEDULES, MOMENTS)
def test_every_window_is_at_most_a_day_and_what_the_clock_adds(schedule, now):
    """A window that never ended would keep its bounds for ever."""
    scaling = named([{**schedule, "days": ["Monday"]}])
    if bounds_at(scaling, now).schedule:
        change = next_change(scaling, now)

        assert change is not None
        assert change - now <= datetime.timedelta(hours=25, minutes=1)
