from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from windlass_operator.power.apply import CLOCK, POWER, Limiter
from windlass_operator.power.devices import Cause, DeviceError, Gpu
from windlass_operator.power.ledger import UNCHANGED, Found, Ledger
from windlass_operator.power.limits import UNTOUCHED, Target
from windlass_operator.power.testing import FakeDevices

ECO = Target(350_000, 1200)


def build_devices(*uuids: str) -> FakeDevices:
    return FakeDevices(
        {
            uuid: Gpu(uuid, number, power_limit_mw=700_000, min_power_mw=200_000, max_power_mw=700_000, clock_mhz=1100)
            for number, uuid in enumerate(uuids or ("GPU-a",))
        }
    )


@pytest.fixture
def devices() -> FakeDevices:
    return build_devices()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, "boot-1")


@pytest.fixture
def limiter(devices: FakeDevices, ledger: Ledger) -> Limiter:
    return Limiter(devices, ledger)


def apply(limiter: Limiter, target: Target, uuid: str = "GPU-a") -> None:
    assert isinstance(limiter.devices, FakeDevices)
    limiter.apply(limiter.devices.gpus[uuid], target)


def test_limits_are_written_and_what_was_before_is_noted(limiter: Limiter, devices: FakeDevices) -> None:
    apply(limiter, ECO)

    assert devices.writes == [("set_power_limit", "GPU-a", 350_000), ("cap_clock", "GPU-a", 1200)]
    assert limiter.ledger.found("GPU-a") == Found(700_000, True)


def test_a_second_look_writes_nothing(limiter: Limiter, devices: FakeDevices) -> None:
    apply(limiter, ECO)
    devices.writes.clear()

    apply(limiter, ECO)

    assert devices.writes == []


def test_a_limit_that_is_in_force_already_is_not_ours_to_take_back(limiter: Limiter, devices: FakeDevices) -> None:
    apply(limiter, Target(700_000))
    apply(limiter, UNTOUCHED)

    assert devices.writes == []
    assert limiter.ledger.changed == ()


def test_limits_that_somebody_else_changed_come_back(limiter: Limiter, devices: FakeDevices) -> None:
    apply(limiter, ECO)
    devices.gpus["GPU-a"] = dataclasses.replace(devices.gpus["GPU-a"], power_limit_mw=500_000, clock_mhz=1900)
    devices.writes.clear()

    apply(limiter, ECO)

    assert devices.writes == [("set_power_limit", "GPU-a", 350_000), ("cap_clock", "GPU-a", 1200)]
    assert limiter.ledger.found("GPU-a") == Found(700_000, True)


def test_a_gpu_that_nobody_holds_any_more_is_as_it_was(limiter: Limiter, devices: FakeDevices) -> None:
    apply(limiter, ECO)

    apply(limiter, UNTOUCHED)

    assert devices.gpus["GPU-a"].power_limit_mw == 700_000
    assert devices.caps == {}
    assert limiter.ledger.changed == ()


@pytest.mark.parametrize("cause", [Cause.NO_PERMISSION, Cause.NOT_SUPPORTED])
def test_a_refused_write_leaves_nothing_to_restore_and_the_other_limit_is_tried(
    limiter: Limiter, devices: FakeDevices, cause: Cause
) -> None:
    devices.failures["set_power_limit", "GPU-a"] = cause

    with pytest.raises(DeviceError) as refused:
        apply(limiter, ECO)

    assert refused.value.cause is cause
    assert limiter.ledger.found("GPU-a") == Found(None, True)
    assert devices.caps == {"GPU-a": 1200}


def test_after_an_error_of_unknown_effect_the_ledger_keeps_what_was(limiter: Limiter, devices: FakeDevices) -> None:
    devices.failures["set_power_limit", "GPU-a"] = Cause.OTHER

    with pytest.raises(DeviceError):
        apply(limiter, ECO)

    assert limiter.ledger.found("GPU-a").power_mw == 700_000


def test_a_gpu_that_cannot_be_restored_stays_in_the_ledger_and_the_others_are_restored(tmp_path: Path) -> None:
    devices = build_devices("GPU-a", "GPU-b")
    limiter = Limiter(devices, Ledger(tmp_path, "boot-1"))
    apply(limiter, ECO, "GPU-a")
    apply(limiter, ECO, "GPU-b")
    devices.gone.add("GPU-a")

    failures = limiter.restore_all()

    assert [failure.cause for failure in failures] == [Cause.LOST]
    assert limiter.ledger.changed == ("GPU-a",)
    assert devices.gpus["GPU-b"].power_limit_mw == 700_000


def test_writes_are_counted_with_their_result(devices: FakeDevices, ledger: Ledger) -> None:
    seen: list[tuple[str, str]] = []
    devices.failures["cap_clock", "GPU-a"] = Cause.NO_PERMISSION
    limiter = Limiter(devices, ledger, lambda what, result: seen.append((what, result)))

    with pytest.raises(DeviceError):
        apply(limiter, ECO)

    assert seen == [(POWER, "ok"), (CLOCK, "no_permission")]


class RestoreMachine(RuleBasedStateMachine):
    """Any targets, refusals and crashes: in the end every GPU is as it was, and GPUs without a target never change."""

    uuids = ("GPU-a", "GPU-b", "GPU-c")

    @initialize(first=st.lists(st.integers(200_000, 700_000), min_size=3, max_size=3))
    def begin(self, first: list[int]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.devices = build_devices(*self.uuids)
        for uuid, limit in zip(self.uuids, first, strict=True):
            self.devices.gpus[uuid] = dataclasses.replace(self.devices.gpus[uuid], power_limit_mw=limit)
        self.before = dict(self.devices.gpus)
        self.wanted: set[str] = set()
        self.start()

    def start(self) -> None:
        self.limiter = Limiter(self.devices, Ledger(Path(self.folder.name), "boot-1"))

    @rule(uuid=st.sampled_from(uuids), power=st.none() | st.integers(200_000, 700_000), clock=st.none() | st.just(1200))
    def aim(self, uuid: str, power: int | None, clock: int | None) -> None:
        self.wanted.add(uuid)
        try:
            apply(self.limiter, Target(power, clock), uuid)
        except DeviceError:
            assert self.devices.failures

    @rule(
        uuid=st.sampled_from(uuids),
        operation=st.sampled_from(["set_power_limit", "cap_clock", "free_clock"]),
        cause=st.none() | st.sampled_from(Cause),
    )
    def break_or_repair(self, uuid: str, operation: str, cause: Cause | None) -> None:
        if cause is None:
            self.devices.failures.pop((operation, uuid), None)
        else:
            self.devices.failures[operation, uuid] = cause

    @rule()
    def crash(self) -> None:
        self.start()

    @rule()
    def restore(self) -> None:
        self.devices.failures.clear()
        assert self.limiter.restore_all() == []
        self.as_before()

    def as_before(self) -> None:
        assert self.devices.gpus == self.before
        assert self.devices.caps == {}
        assert self.limiter.ledger.changed == ()

    @invariant()
    def untouched(self) -> None:
        for uuid in set(self.uuids) - getattr(self, "wanted", set(self.uuids)):
            assert self.devices.gpus[uuid] == self.before[uuid]
            assert self.limiter.ledger.found(uuid) == UNCHANGED

    def teardown(self) -> None:
        if hasattr(self, "devices"):
            self.start()
            self.restore()
            self.folder.cleanup()


TestRestore: Any = RestoreMachine.TestCase
TestRestore.settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # machines share their cores
