"""Measuring canaries beside the reconcile loop: started when due, taken once, never in the way."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import pytest

from support.builders import build_canary, build_service, build_snapshot, build_workload
from windlass_operator.api.v1alpha1.canary import CanaryPhase
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.cluster.canary_meter import Subject
from windlass_operator.domain.canary import Reading, RevisionReading
from windlass_operator.domain.canary_plan import canary_key
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.reconcile.canary_analysis import CanaryAnalyst
from windlass_operator.reconcile.reconciler import Reconciler
from windlass_operator.testing import InMemoryCluster

CHAT = Key("InferenceService", "team-a", "chat")
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
ANALYSIS = {"metrics": [{"type": "ErrorRate", "threshold": 5}], "intervalSeconds": 60, "passes": 2}


class ScriptedMeter:
    """Answers when the test says so."""

    def __init__(self, reading: Reading | None = None) -> None:
        self.reading = reading or Reading(RevisionReading(100, 0), RevisionReading(100, 0))
        self.asked: list[Subject] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.breaks = False

    async def read(self, subject: Subject) -> Reading:
        self.asked.append(subject)
        await self.may_answer.wait()
        if self.breaks:
            raise RuntimeError("a bug")
        return self.reading

    async def close(self) -> None:
        """Nothing runs."""


class World:
    """One service with a canary, looked at again and again."""

    def __init__(self, meter: ScriptedMeter, **analysis: Any) -> None:
        self.meter = meter
        self.woken: list[Key] = []
        self.analyst = CanaryAnalyst(meter, self.woken.append)
        self.service = build_service(canaries=[build_canary(analysis={**ANALYSIS, **analysis})])
        self.second = 0

    @property
    def now(self) -> datetime.datetime:
        return START + datetime.timedelta(seconds=self.second)

    def look(self, second: int, ready: int = 1) -> InferenceService:
        self.second = second
        key = canary_key(CHAT, "next")
        snapshot = Snapshot(build_snapshot(self.service).services, workloads={key: build_workload(ready)})
        self.service = self.analyst.advance(CHAT, self.service, snapshot, self.now)
        return self.service

    @property
    def passed(self) -> int:
        analysis = self.service.status.canaries[0].analysis
        return analysis.passed if analysis is not None else 0


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_check_is_measured_when_it_is_due_and_judged_at_the_next_look() -> None:
    world = World(ScriptedMeter())
    world.look(0)
    world.look(59)
    early = list(world.meter.asked)

    world.look(60)
    await settle()
    woken = list(world.woken)
    world.look(61)

    assert early == []
    assert woken == [CHAT]
    assert world.passed == 1
    (subject,) = world.meter.asked
    assert (subject.canary, subject.window_s, subject.served_name) == ("next", 60, "chat")


async def test_a_slow_measurement_is_not_started_twice() -> None:
    world = World(ScriptedMeter())
    world.meter.may_answer.clear()
    world.look(0)
    for second in range(60, 90):
        world.look(second)
        await settle()

    world.meter.may_answer.set()
    await settle()
    world.look(91)

    assert len(world.meter.asked) == 1
    assert world.passed == 1


async def test_the_next_look_is_told() -> None:
    world = World(ScriptedMeter())

    waits = []
    for second in (0, 20, 60):
        world.look(second)
        waits.append(world.analyst.again_in_s(world.service, world.now))
    await settle()
    world.look(61)
    waits.append(world.analyst.again_in_s(world.service, world.now))

    assert waits == [60, 40, None, 60], "while it is being measured, the measurement itself wakes"


async def test_a_bug_in_a_meter_is_a_check_without_data() -> None:
    world = World(ScriptedMeter())
    world.meter.breaks = True
    world.look(0)
    world.look(60)
    await settle()

    world.look(61)

    (state,) = world.service.status.canaries
    assert (state.reason, state.phase) == ("NoData", CanaryPhase.ANALYSING)
    assert "RuntimeError: a bug" in state.message


async def test_a_canary_that_is_not_ready_is_not_measured() -> None:
    world = World(ScriptedMeter())
    world.look(0)
    world.look(60, ready=0)
    await settle()

    assert world.meter.asked == []
    assert world.service.status.canaries[0].reason == "CheckFailed"


async def test_a_measurement_of_an_older_spec_does_not_judge_the_new_one() -> None:
    world = World(ScriptedMeter(Reading(RevisionReading(100, 100))))
    world.look(0)
    world.look(60)
    await settle()
    changed = build_canary(analysis={**ANALYSIS, "failureLimit": 1})
    fresh = build_service(canaries=[changed])
    world.service = fresh.model_copy(update={"status": world.service.status})

    world.look(61)

    assert world.service.status.canaries[0].reason == "AnalysisStarted"


async def test_a_canary_that_left_the_spec_leaves_the_state() -> None:
    world = World(ScriptedMeter())
    world.meter.may_answer.clear()
    world.look(0)
    world.look(60)
    world.service = build_service().model_copy(update={"status": world.service.status})

    world.look(61)
    await settle()

    assert world.service.status.canaries == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("measure")]


async def test_a_service_that_is_gone_leaves_nothing_behind() -> None:
    world = World(ScriptedMeter())
    world.meter.may_answer.clear()
    world.look(0)
    world.look(60)
    await settle()

    world.analyst.forget(CHAT)
    await settle()

    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("measure")]


@pytest.mark.parametrize("failed", [0, 100])
async def test_a_reconcile_judges_applies_and_reports_in_one_turn(failed: int) -> None:
    meter = ScriptedMeter(Reading(RevisionReading(100, failed)))
    cluster = InMemoryCluster()
    cluster.put(build_service(canaries=[build_canary(analysis={**ANALYSIS, "failureLimit": 1, "passes": 1})]))
    cluster.workloads[CHAT] = cluster.workloads[canary_key(CHAT, "next")] = build_workload(1)
    second = 0
    reconciler = Reconciler(
        cluster,
        FleetSettings(),
        lambda: START + datetime.timedelta(seconds=second),
        analyst=CanaryAnalyst(meter, lambda _: None),
    )

    waits = []
    for second in (0, 60, 61):  # noqa: B007 - the clock reads it
        waits.append((await reconciler.reconcile(CHAT)).again_in_s)
        await settle()

    (state,) = cluster.statuses[CHAT]["canaries"]
    _, deployment = cluster.children["Deployment", "team-a", "chat-next"]
    assert waits[0] == 60
    assert (state["phase"], state["trafficPercent"]) == (("Aborted", 0) if failed else ("Succeeded", 10))
    assert deployment["spec"]["replicas"] == (0 if failed else 1)
