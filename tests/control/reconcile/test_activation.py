"""The shell that wakes and puts to sleep, with gateways, replicas and clock of the test."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from support.builders import build_service, build_snapshot, build_workload
from windlass_operator.cluster.gateways import Demand
from windlass_operator.domain.capabilities import ApiOwner, Capabilities
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.errors import ClusterUnavailable
from windlass_operator.reconcile.activation import Activator, plan_sleepers
from windlass_operator.reconcile.coldness import PAUSE_S, ColdnessKeeper

NOW = datetime.datetime(2026, 1, 15, 10, tzinfo=datetime.UTC)
KEY = Key("InferenceService", "team-a", "chat")
ASLEEP = {"minReplicas": 0, "maxReplicas": 4, "scaleDownDelaySeconds": 60}


class World:
    """Everything around: what gateways and pods say, and what was written."""

    def __init__(self, wanted: int = 1, **fields: Any) -> None:
        self.now_s = 0.0
        self.demand = Demand(asked=1)
        self.pods: dict[str, dict[str, float]] = {}
        self.deaf = False
        self.asked = 0
        self.scaled: list[int] = []
        self.costs = {"a": 0, "b": 0}
        self.written: list[tuple[str, int]] = []
        self.service = build_service(scaling=ASLEEP, limits={"maxRunningRequests": 8})
        self.snapshot = self.picture_of(wanted, **fields)

    def picture_of(self, wanted: int, **fields: Any) -> Snapshot:
        workloads = {"team-a/chat": build_workload(wanted, **fields)}
        return build_snapshot(self.service, workloads=workloads)

    async def read(self, *question: str) -> Any:
        """Of gateways without a question, of pods with one."""
        if not question:
            return self.demand
        self.asked += 1
        if self.deaf:
            raise ClusterUnavailable("no adapter")
        return self.pods.get(question[-1], {})

    async def scale(self, key: Key, replicas: int) -> None:
        assert key == KEY
        self.scaled.append(replicas)

    async def set_cost(self, key: Key, pod: str, cost: int) -> None:
        self.written.append((pod, cost))
        self.costs[pod] = cost

    async def work(self) -> None:
        """Always."""

    def activator(self) -> Activator:
        parts: Any = self
        return Activator(
            parts,
            parts,
            self.scale,
            picture=lambda: self.snapshot,
            settings=FleetSettings(),
            may_work=self.work,
            clock=lambda: self.now_s,
            wall_clock=lambda: NOW,
        )

    def keeper(self) -> ColdnessKeeper:
        parts: Any = self
        return ColdnessKeeper(
            parts,
            self.set_cost,
            lambda key: self.costs,
            picture=lambda: self.snapshot,
            may_work=self.work,
            clock=lambda: self.now_s,
        )


QUIET = {"windlass_requests_running": {"a": 0.0}, "windlass_requests_waiting": {"a": 0.0}}


async def look_for(world: World, activator: Activator, seconds: int) -> None:
    for _ in range(seconds):
        await activator.look()
        world.now_s += 1.0


async def test_one_wake_for_many_who_wait() -> None:
    world = World(wanted=0)
    world.demand = Demand({("team-a", "chat"): 20.0}, asked=1)
    activator = world.activator()

    await activator.look()
    world.snapshot = world.picture_of(3)
    await look_for(world, activator, 5)

    assert world.scaled == [3]


async def test_an_idle_service_falls_asleep_after_its_delay() -> None:
    world = World()
    world.pods = QUIET
    activator = world.activator()

    await look_for(world, activator, 60)
    assert world.scaled == []
    await look_for(world, activator, 12)

    assert world.scaled == [0]
    assert world.asked <= 16, "replicas are asked every ten seconds, not every second"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"demand": Demand({("team-a", "chat"): 1.0}, asked=1)}, id="a gateway is asked"),
        pytest.param({"demand": Demand(missing=1, asked=2)}, id="a gateway is not heard"),
        pytest.param({"demand": Demand()}, id="there is no gateway to wake it again"),
        pytest.param({"deaf": True}, id="replicas are not heard"),
        pytest.param({"pods": {}}, id="a replica says nothing"),
        pytest.param({"pods": {**QUIET, "windlass_requests_running": {"a": 1.0}}}, id="a replica is asked directly"),
    ],
)
async def test_what_may_be_in_use_stays_awake(change: dict[str, Any]) -> None:
    world = World()
    world.pods = QUIET
    for name, value in change.items():
        setattr(world, name, value)

    await look_for(world, world.activator(), 200)

    assert world.scaled == []


@pytest.mark.parametrize(
    ("scaling", "capabilities", "expected"),
    [
        pytest.param(ASLEEP, Capabilities(), [KEY], id="nobody else does it"),
        pytest.param(
            ASLEEP,
            Capabilities(known=True, scales_to_zero=True, custom_metrics=ApiOwner("a/b", ours=True)),
            [KEY],
            id="the autoscaler sleeps, the operator wakes",
        ),
        pytest.param({"minReplicas": 1, "maxReplicas": 4}, Capabilities(), [], id="a service that never sleeps"),
        pytest.param(ASLEEP, Capabilities(known=True, has_keda=True), [], id="KEDA does all of it"),
    ],
)
def test_only_services_that_may_sleep_are_looked_at(
    scaling: dict[str, Any], capabilities: Capabilities, expected: list[Key]
) -> None:
    from dataclasses import replace

    snapshot = replace(build_snapshot(build_service(scaling=scaling)), capabilities=capabilities)

    found = plan_sleepers(snapshot, FleetSettings(prometheus_url="http://prometheus:9090"), NOW)

    assert [sleeper.key for sleeper in found] == expected


async def test_costs_are_written_when_a_service_is_about_to_shrink() -> None:
    world = World(wanted=2, shrinks_soon=True)
    world.pods = {"windlass_requests_running": {"a": 3.0, "b": 0.0}, "windlass_kv_use_ratio": {"a": 0.1}}
    keeper = world.keeper()

    await keeper.look()
    assert world.written == [("a", 1)]

    world.now_s = PAUSE_S
    await keeper.look()
    assert world.written == [("a", 1)], "the same order is not written again"


async def test_costs_are_left_alone_otherwise() -> None:
    world = World(wanted=2)
    await world.keeper().look()
    assert (world.asked, world.written) == (0, [])

    world = World(wanted=2, shrinks_soon=True)
    world.deaf = True
    await world.keeper().look()
    assert world.written == []


async def test_one_service_is_asked_at_most_every_half_minute() -> None:
    world = World(wanted=2, shrinks_soon=True)
    keeper = world.keeper()

    for _ in range(5):
        await keeper.look()
        world.now_s += 5.0

    assert world.asked == 2
