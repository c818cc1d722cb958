"""Series of the agent stay bounded by its node, however much comes and goes."""

from __future__ import annotations

from windlass_contract import metric_names
from windlass_operator.power.devices import Gpu
from windlass_operator.power.energy import EnergyBook, ServiceKey
from windlass_operator.power.holding import PodDevices
from windlass_operator.power.limits import GpuPlan
from windlass_operator.power.telemetry import GpuReport, Telemetry

NAMES = vars(metric_names).values()
GPUS = 8
PODS = 32
PER_GPU = 9
"""Limit, wanted limit, clock cap, draw, energy, and four states."""
PER_SERVICE = 3
"""Energy, tokens, joules per token."""


def test_a_node_through_which_a_thousand_services_passed_has_the_series_of_those_that_are_there() -> None:
    telemetry, book = Telemetry(), EnergyBook(300)
    gpus = tuple(Gpu(f"GPU-{n}", n, 1, 1, 1, 1, 1, 1, 1, 1) for n in range(GPUS))
    for look in range(40):
        pods = [PodDevices(f"team-{look}", f"p{n}", ids=(f"GPU-{n % GPUS}::0",)) for n in range(PODS)]
        services = {f"team-{look}/p{n}": ServiceKey(f"team-{look}", f"s{n}") for n in range(PODS)}
        holders = {gpu.uuid: tuple(pod for n, pod in enumerate(pods) if n % GPUS == gpu.index) for gpu in gpus}
        tokens = dict.fromkeys(services, float(look))
        book.observe(look, {gpu.uuid: float(look) for gpu in gpus}, holders, services, tokens)
        telemetry.set_accounts(book.accounts)
        telemetry.set_gpus(tuple(GpuReport(gpu, GpuPlan(gpu.uuid), "found") for gpu in gpus))

    lines = [line for line in telemetry.text().decode().splitlines() if line.startswith("windlass_power_")]

    assert len(lines) <= GPUS * PER_GPU + PODS * PER_SERVICE
    assert {line.partition("{")[0] for line in lines} <= {name for name in NAMES if isinstance(name, str)}
    assert not [line for line in lines if 'namespace="team-3"' in line]
