from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from windlass_contract import metric_names
from windlass_operator.api.v1alpha1.power import Power, PowerProfile
from windlass_operator.errors import ClusterUnavailable, RetryLater
from windlass_operator.power.agent import PowerAgent
from windlass_operator.power.devices import Cause, Gpu
from windlass_operator.power.energy import EnergyBook, ServiceKey
from windlass_operator.power.holding import ClaimedDevice, PodDevices
from windlass_operator.power.ledger import FILE_NAME, Ledger
from windlass_operator.power.limits import Holder
from windlass_operator.power.pods import ReplicaPod
from windlass_operator.power.telemetry import Telemetry
from windlass_operator.power.testing import FakeDevices, FakeNode

POLICY: dict[str, Any] = {
    "bounds": {"minWatts": 200, "maxWatts": 700, "minGraphicsClockMHz": 600, "maxGraphicsClockMHz": 1980},
    "profiles": {"eco": {"powerLimitWatts": 350, "maxGraphicsClockMHz": 1200}, "performance": {"powerLimitWatts": 700}},
}


@dataclass
class World:
    """One node, and the agent on it."""

    devices: FakeDevices
    node: FakeNode
    folder: Path
    now_s: float = 0.0

    def agent(self, *, dry_run: bool = False) -> PowerAgent:
        def open_ledger() -> Ledger:
            return Ledger(self.folder, "boot-1")

        return PowerAgent(
            devices=self.devices,
            kubelet=self.node,
            directory=self.node,
            tokens=self.node,
            telemetry=Telemetry(),
            book=EnergyBook(300),
            clock=lambda: self.now_s,
            open_ledger=None if dry_run else open_ledger,
        )

    def run_pod(self, name: str, *ids: str, profile: PowerProfile | None = PowerProfile.ECO, **policy: Any) -> None:
        """A replica that holds devices; without a profile it is a stranger's pod."""
        self.node.pods = (*self.node.pods, PodDevices("team-a", name, ids=ids))
        if profile is not None:
            power = Power.model_validate({**POLICY, **policy})
            holder = Holder(f"team-a/{name}", power, profile)
            self.node.known[holder.pod] = ReplicaPod(ServiceKey("team-a", "chat"), "10.0.0.1", holder)

    def limits(self) -> dict[str, tuple[int | None, int | None]]:
        return {
            uuid: ((gpu.power_limit_mw or 0) // 1000, self.devices.caps.get(uuid))
            for uuid, gpu in self.devices.gpus.items()
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    gpus = {
        uuid: Gpu(
            uuid,
            number,
            power_limit_mw=700_000,
            min_power_mw=200_000,
            max_power_mw=700_000,
            max_clock_mhz=1980,
            energy_mj=0,
        )
        for number, uuid in enumerate(("GPU-a", "GPU-b"))
    }
    return World(FakeDevices(gpus), FakeNode(), tmp_path)


def samples_of(agent: PowerAgent) -> dict[tuple[str, ...], float]:
    """Samples as `(name, label value, ...)`, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(agent.telemetry.text().decode())
        for sample in family.samples
    }


AS_FOUND = {"GPU-a": (700, None), "GPU-b": (700, None)}


async def test_a_replica_brings_its_profile_to_its_gpu_and_to_no_other(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")

    await world.agent().cycle()

    assert world.limits() == {"GPU-a": (350, 1200), "GPU-b": (700, None)}


async def test_nothing_is_touched_where_no_class_has_a_policy(world: World) -> None:
    world.run_pod("chat-1", "GPU-a", profile=None)

    await world.agent().cycle()

    assert world.devices.writes == []
    assert world.limits() == AS_FOUND


async def test_looking_again_writes_nothing(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    agent = world.agent()
    await agent.cycle()
    world.devices.writes.clear()

    await agent.cycle()

    assert world.devices.writes == []


async def test_when_a_replica_leaves_its_gpu_is_as_before(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    agent = world.agent()
    await agent.cycle()
    world.node.pods = ()

    await agent.cycle()

    assert world.limits() == AS_FOUND


async def test_when_a_stranger_joins_a_shared_gpu_it_is_as_before(world: World) -> None:
    world.run_pod("chat-1", "GPU-a::0")
    agent = world.agent()
    await agent.cycle()
    assert world.limits()["GPU-a"] == (350, 1200)
    world.run_pod("notebook", "GPU-a::1", profile=None)

    await agent.cycle()

    assert world.limits() == AS_FOUND


async def test_a_new_profile_arrives_without_a_restart_of_anything(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    agent = world.agent()
    await agent.cycle()
    world.node.pods = ()
    world.run_pod("chat-1", "GPU-a", profile=PowerProfile.PERFORMANCE)

    await agent.cycle()

    assert world.limits() == AS_FOUND
    assert samples_of(agent)[metric_names.POWER_GPU_STATE, "GPU-a", "managed"] == 1


async def test_devices_of_resource_claims_are_followed(world: World) -> None:
    claim = ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-1")
    world.run_pod("chat-1")
    world.node.pods = (PodDevices("team-a", "chat-1", claimed=(claim,)),)
    world.node.claimed = {claim: "GPU-b"}

    await world.agent().cycle()

    assert world.limits() == {"GPU-a": (700, None), "GPU-b": (350, 1200)}


async def test_on_exit_every_gpu_is_as_before(world: World) -> None:
    world.run_pod("chat-1", "GPU-a", "GPU-b")
    agent = world.agent()
    await agent.cycle()

    await agent.restore()

    assert world.limits() == AS_FOUND


async def test_the_run_after_a_crash_restores_before_it_looks(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    await world.agent().cycle()
    world.node.pods = ()

    await world.agent().start()

    assert world.limits() == AS_FOUND


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.run_pod("chat-1", "GPU-a")
    agent = world.agent(dry_run=True)

    await agent.start()
    await agent.cycle()
    await agent.restore()

    assert world.devices.writes == []
    assert not (world.folder / FILE_NAME).exists()
    assert "GPU would be planned. gpu=GPU-a power_mw=350000 clock_mhz=1200" in caplog.text
    samples = samples_of(agent)
    assert samples[metric_names.POWER_WANTED_LIMIT, "GPU-a"] == 350
    assert samples[metric_names.POWER_LIMIT, "GPU-a"] == 700
    assert samples[metric_names.POWER_GPU_STATE, "GPU-a", "dry_run"] == 1


def kubelet_fails(world: World) -> None:
    world.node.kubelet_problem = RetryLater("kubelet.sock: expected the kubelet's API, found UNAVAILABLE")


def api_fails(world: World) -> None:
    world.node.api_problem = ClusterUnavailable("https://10.0.0.1: no route")


def driver_fails(world: World) -> None:
    world.devices.driver = False


FAILURES = [
    pytest.param(kubelet_fails, "kubelet", id="kubelet"),
    pytest.param(api_fails, "api", id="API server"),
    pytest.param(driver_fails, "driver", id="driver"),
]


@pytest.mark.parametrize(("fail", "source"), FAILURES)
async def test_before_everything_is_known_nothing_is_written(
    world: World, fail: Callable[[World], None], source: str
) -> None:
    world.run_pod("chat-1", "GPU-a")
    fail(world)
    agent = world.agent()

    await agent.cycle()

    assert world.devices.writes == []
    assert samples_of(agent)[metric_names.POWER_SOURCE_UP, source] == 0


@pytest.mark.parametrize(("fail", "source"), FAILURES)
async def test_what_falls_silent_leaves_limits_as_they_are(
    world: World, fail: Callable[[World], None], source: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.run_pod("chat-1", "GPU-a")
    agent = world.agent()
    await agent.cycle()
    fail(world)

    await agent.cycle()
    await agent.cycle()

    assert world.limits()["GPU-a"] == (350, 1200)
    assert caplog.text.count("Limits stay as they are") == 1
    assert samples_of(agent)[metric_names.POWER_SOURCE_UP, source] == 0


async def test_a_pod_that_the_silent_api_server_has_not_told_of_is_a_stranger(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    agent = world.agent()
    await agent.cycle()
    api_fails(world)
    world.node.pods = (PodDevices("team-a", "chat-2", ids=("GPU-a",)),)

    await agent.cycle()

    assert world.limits() == AS_FOUND


async def test_missing_permission_is_said_once_counted_and_survived(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.run_pod("chat-1", "GPU-a")
    for operation in ("set_power_limit", "cap_clock"):
        world.devices.failures[operation, "GPU-a"] = Cause.NO_PERMISSION
    agent = world.agent()

    await agent.cycle()
    await agent.cycle()

    samples = samples_of(agent)
    assert samples[metric_names.POWER_GPU_STATE, "GPU-a", "failed"] == 1
    assert samples[metric_names.POWER_WRITES_TOTAL, "no_permission", "power_limit"] == 2
    assert caplog.text.count("Limits stay as they are") == 1
    assert agent.cycles == 2


async def test_once_the_permission_is_there_the_profile_comes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.run_pod("chat-1", "GPU-a")
    world.devices.failures["set_power_limit", "GPU-a"] = Cause.NO_PERMISSION
    agent = world.agent()
    await agent.cycle()
    world.devices.failures.clear()

    await agent.cycle()

    assert world.limits()["GPU-a"] == (350, 1200)
    assert "Works again. what=GPU-a" in caplog.text


async def test_a_lost_gpu_stops_nothing_and_is_restored_when_it_is_back(world: World) -> None:
    world.run_pod("chat-1", "GPU-a", "GPU-b")
    agent = world.agent()
    await agent.cycle()
    world.devices.gone.add("GPU-a")
    world.node.pods = ()

    await agent.cycle()
    assert world.limits() == {"GPU-a": (350, 1200), "GPU-b": (700, None)}
    world.devices.gone.clear()
    await agent.cycle()

    assert world.limits() == AS_FOUND


async def test_without_a_place_to_note_what_was_before_no_gpu_is_changed(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    (world.folder / FILE_NAME).write_text("{")
    agent = world.agent()

    await agent.start()
    await agent.cycle()

    samples = samples_of(agent)
    assert world.devices.writes == []
    assert samples[metric_names.POWER_SOURCE_UP, "state"] == 0
    assert samples[metric_names.POWER_GPU_STATE, "GPU-a", "failed"] == 1


async def test_the_load_steps_a_balanced_gpu_down_and_up(world: World) -> None:
    world.run_pod("chat-1", "GPU-a", profile=PowerProfile.BALANCED, followLoad={"holdSeconds": 30})
    agent = world.agent()

    async def look(use: int, times: int) -> tuple[int | None, int | None]:
        for _ in range(times):
            gpu = world.devices.gpus["GPU-a"]
            world.devices.gpus["GPU-a"] = Gpu(**{**_fields(gpu), "use_percent": use})
            await agent.cycle()
            world.now_s += 15
        return world.limits()["GPU-a"]

    assert await look(5, 2) == (700, None)
    assert await look(5, 1) == (350, 1200)
    assert await look(99, 2) == (350, 1200)
    assert await look(99, 1) == (700, None)
    assert world.limits()["GPU-b"] == (700, None)


def _fields(gpu: Gpu) -> dict[str, Any]:
    return {name: getattr(gpu, name) for name in gpu.__slots__}


async def test_joules_per_token_come_from_the_counter_and_the_replicas(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    world.node.generated = {"team-a/chat-1": 100}
    agent = world.agent()
    await agent.cycle()
    world.devices.gpus["GPU-a"] = Gpu(**{**_fields(world.devices.gpus["GPU-a"]), "energy_mj": 6_000_000})
    world.node.generated = {"team-a/chat-1": 500}
    world.now_s = 15

    await agent.cycle()

    samples = samples_of(agent)
    assert samples[metric_names.POWER_JOULES_PER_TOKEN, "team-a", "chat"] == 15
    assert samples[metric_names.POWER_SERVICE_ENERGY_TOTAL, "team-a", "chat"] == 6000
    assert samples[metric_names.POWER_SERVICE_TOKENS_TOTAL, "team-a", "chat"] == 400
    assert samples[metric_names.POWER_ENERGY_TOTAL, "GPU-a"] == 6000


async def test_what_is_gone_leaves_no_series(world: World) -> None:
    world.run_pod("chat-1", "GPU-a")
    agent = world.agent()
    await agent.cycle()
    assert (metric_names.POWER_SERVICE_ENERGY_TOTAL, "team-a", "chat") in samples_of(agent)
    world.node.pods, world.node.known = (), {}
    world.devices.gone.add("GPU-b")

    await agent.cycle()

    assert [series for series in samples_of(agent) if {"GPU-b", "team-a"} & set(series)] == []
