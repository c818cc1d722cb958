"""Which bounds of `spec.scaling` hold at a moment, and when that changes. Pure: the moment is a value.

Hours are wall-clock time of the schedule's zone. An hour that the clock skips in spring comes as much later as the
clock jumps; of an hour that it shows twice in autumn the first one starts and the second one ends: no window is cut.
"""

from __future__ import annotations

import datetime
import functools
import zoneinfo
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.scaling import Scaling, Schedule, Weekday
from windlass_operator.domain.snapshot import Key, Snapshot

DAY: Final = datetime.timedelta(days=1)
WEEK_DAYS: Final = tuple(Weekday)
"""Monday first, as `date.weekday` counts."""
LOOK_AHEAD_DAYS: Final = 9
"""A schedule of one day a week begins again within eight days, counted in any zone."""


@dataclass(frozen=True, slots=True)
class Window:
    """One time in which a schedule holds: from `start` until before `end`, in UTC."""

    start: datetime.datetime
    end: datetime.datetime


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a moment, and the name of the schedule they come from; empty for those of scaling itself."""

    least: int
    most: int
    schedule: str = ""


def unknown_time_zones(scaling: Scaling) -> tuple[str, ...]:
    """Zones that the database does not know."""
    names = {schedule.time_zone for schedule in scaling.schedules}
    return tuple(sorted(name for name in names if _zone(name) is None))


def bounds_at(scaling: Scaling, now: datetime.datetime) -> Bounds:
    """Return the bounds that hold; of several schedules the first. Schedules of unknown zones never hold."""
    for schedule in scaling.schedules:
        if any(window.start <= now < window.end for window in _windows(schedule, now, days=1)):
            return Bounds(
                scaling.min_replicas if schedule.min_replicas is None else schedule.min_replicas,
                scaling.max_replicas if schedule.max_replicas is None else schedule.max_replicas,
                schedule.name,
            )
    return Bounds(scaling.min_replicas, scaling.max_replicas)


def next_change(scaling: Scaling, now: datetime.datetime) -> datetime.datetime | None:
    """Return when `bounds_at` next says something else; None where it does not within a week."""
    held = bounds_at(scaling, now)
    edges = {
        edge
        for schedule in scaling.schedules
        for window in _windows(schedule, now, days=LOOK_AHEAD_DAYS)
        for edge in (window.start, window.end)
        if edge > now
    }
    return next((edge for edge in sorted(edges) if bounds_at(scaling, edge) != held), None)


def lowest_minimum(scaling: Scaling) -> int:
    """Return the fewest replicas that any hour allows."""
    minima = [schedule.min_replicas for schedule in scaling.schedules if schedule.min_replicas is not None]
    return min([scaling.min_replicas, *minima])


def apply_schedules(snapshot: Snapshot, now: datetime.datetime) -> Snapshot:
    """Return the picture in which every service asks for the bounds of `now`; the same one where no schedule holds."""
    changed = dict(_scheduled(snapshot.services.items(), now))
    return replace(snapshot, services={**snapshot.services, **changed}) if changed else snapshot


def next_change_of_all(services: Iterable[InferenceService], now: datetime.datetime) -> datetime.datetime | None:
    """Return when the bounds of any service next change."""
    changes = [
        next_change(service.spec.scaling, now)
        for service in services
        if service.spec.scaling is not None and service.spec.scaling.schedules
    ]
    return min((change for change in changes if change is not None), default=None)


def _scheduled(
    services: Iterable[tuple[Key, InferenceService]], now: datetime.datetime
) -> Iterator[tuple[Key, InferenceService]]:
    for key, service in services:
        scaling = service.spec.scaling
        if scaling is None or not scaling.schedules:
            continue
        bounds = bounds_at(scaling, now)
        if (bounds.least, bounds.most) != (scaling.min_replicas, scaling.max_replicas):
            held = scaling.model_copy(update={"min_replicas": bounds.least, "max_replicas": bounds.most})
            yield key, service.model_copy(update={"spec": service.spec.model_copy(update={"scaling": held})})


def _windows(schedule: Schedule, now: datetime.datetime, days: int) -> Iterator[Window]:
    """Windows that begin from the day before `now` to some days after it."""
    zone = _zone(schedule.time_zone)
    if zone is None:
        return
    start, end = (datetime.time.fromisoformat(text) for text in (schedule.start, schedule.end))
    today = now.astimezone(zone).date()
    for offset in range(-1, days):
        day = today + offset * DAY
        if schedule.days and WEEK_DAYS[day.weekday()] not in schedule.days:
            continue
        last_day = day if end > start else day + DAY
        window = Window(_moment(day, start, zone, fold=0), _moment(last_day, end, zone, fold=1))
        if window.start < window.end:
            yield window


def _moment(day: datetime.date, time: datetime.time, zone: zoneinfo.ZoneInfo, fold: int) -> datetime.datetime:
    """UTC of a wall-clock time. One that the clock skips is read as before the jump, whatever the fold."""
    local = datetime.datetime.combine(day, time, zone)
    first, second = (local.replace(fold=number).astimezone(datetime.UTC) for number in (0, 1))
    return second if fold == 1 and second > first else first


@functools.cache
def _zone(name: str) -> zoneinfo.ZoneInfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def describe_bounds(scaling: Scaling, now: datetime.datetime | None) -> str:
    """Say which schedule holds and until when; empty without schedules."""
    if not scaling.schedules:
        return ""
    if now is None:
        return "schedules are not applied here"
    bounds, change = bounds_at(scaling, now), next_change(scaling, now)
    until = f" until {change.strftime('%Y-%m-%dT%H:%M:%SZ')}" if change is not None else ""
    return f"schedule {bounds.schedule} holds{until}" if bounds.schedule else f"no schedule holds{until}"
