"""Costs reach statuses and metrics, at most when they should."""

from __future__ import annotations

import asyncio
import datetime

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

from support.builders import build_gpu_class, build_service, build_snapshot, build_tenant, build_workload
from windlass_operator import errors
from windlass_operator.domain.cost import TokenCounters
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.reconcile.costs import CostBook, CostKeeper, CostMetrics

CHAT = Key("InferenceService", "team-a", "chat")
ACME = Key("Tenant", "", "acme")


class Bench:
    """A fleet of one service, a clock, and replicas that count."""

    def __init__(self, price: str | None = "3.00", tenants: int = 1) -> None:
        self.now_s = 0.0
        self.woken: list[Key] = []
        self.counters: TokenCounters | None = {CHAT: {"a": 0.0}}
        self.reads = 0
        gpu_class = build_gpu_class(**({} if price is None else {"pricePerHour": price}))
        self.snapshot: Snapshot = build_snapshot(
            build_service(accelerator={"classes": ["h200"]}),
            build_tenant(),
            gpu_class,
            workloads={"team-a/chat": build_workload(2, gpu_class="h200", placed=2)},
        )
        self.book = CostBook("USD", self.wall_clock)
        self.keeper = CostKeeper(
            self.book,
            lambda: self.snapshot,
            may_work=_always,
            wake=self.woken.append,
            interval_s=60.0,
            clock=lambda: self.now_s,
        )
        self.keeper.read_tokens = self.read

    def wall_clock(self) -> datetime.datetime:
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=self.now_s)

    async def read(self) -> TokenCounters:
        self.reads += 1
        if self.counters is None:
            raise errors.RetryLater("Prometheus is away")
        return self.counters

    async def pass_minutes(self, minutes: int, tokens_per_minute: float) -> int:
        """Serve for a while; each woken object writes its status. Returns the number of writes."""
        writes = 0
        for _ in range(minutes):
            self.now_s += 60
            if self.counters is not None:
                self.counters = {CHAT: {"a": (self.counters[CHAT]["a"] or 0.0) + tokens_per_minute}}
            self.woken.clear()
            await self.keeper.note_once()
            for key in self.woken:
                self.write(key)
                writes += 1
        return writes

    def write(self, key: Key) -> None:
        cost = self.book.renew(key, self.snapshot)
        if key == CHAT:
            service = self.snapshot.services[CHAT]
            status = service.status.model_copy(update={"cost": cost})
            services = {CHAT: service.model_copy(update={"status": status})}
            self.snapshot = Snapshot(
                services, self.snapshot.tenants, self.snapshot.gpu_classes, {}, self.snapshot.workloads
            )
        else:
            tenant = self.snapshot.tenants["acme"]
            status = tenant.status.model_copy(update={"cost": cost})
            tenants = {"acme": tenant.model_copy(update={"status": status})}
            self.snapshot = Snapshot(
                self.snapshot.services, tenants, self.snapshot.gpu_classes, {}, self.snapshot.workloads
            )

    def metrics(self) -> str:
        registry = CollectorRegistry()
        registry.register(CostMetrics(self.book, lambda: self.snapshot, "USD"))
        return prometheus_client.generate_latest(registry).decode()


async def _always() -> None:
    """This process leads."""


async def test_service_and_tenant_learn_what_they_cost_and_then_rest() -> None:
    bench = Bench()

    first = await bench.pass_minutes(2, tokens_per_minute=20_000)
    steady = await bench.pass_minutes(120, tokens_per_minute=20_000)

    cost = bench.snapshot.services[CHAT].status.cost
    assert cost is not None
    assert (cost.per_hour, cost.tokens_per_hour, cost.per_million_tokens) == ("6", 1_200_000, "5")
    assert bench.snapshot.tenants["acme"].status.cost == cost
    assert first == 4  # prices at once, tokens with the second reading; both for the service and the tenant
    assert steady == 0


async def test_a_load_that_swings_is_written_four_times_an_hour_at_most() -> None:
    bench = Bench()
    await bench.pass_minutes(2, tokens_per_minute=20_000)

    writes = 0
    for minute in range(120):
        writes += await bench.pass_minutes(1, tokens_per_minute=1_000 if minute % 40 < 20 else 200_000)

    assert 2 < writes <= 2 * 4 * 2


async def test_nothing_is_read_while_no_class_has_a_price() -> None:
    bench = Bench(price=None)

    writes = await bench.pass_minutes(3, tokens_per_minute=1)

    assert (writes, bench.reads) == (0, 0)
    assert "windlass_cost_per_hour{" not in bench.metrics()


async def test_a_source_that_fails_leaves_the_figures() -> None:
    bench = Bench()
    await bench.pass_minutes(2, tokens_per_minute=20_000)
    before = bench.snapshot.services[CHAT].status.cost
    bench.counters = None

    writes = await bench.pass_minutes(30, tokens_per_minute=0)

    assert bench.snapshot.services[CHAT].status.cost is not None
    assert bench.snapshot.services[CHAT].status.cost.per_hour == "6"
    assert before is not None
    assert writes <= 4


async def test_a_bug_in_costs_does_not_end_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.keeper = CostKeeper(
        bench.book,
        lambda: None,
        may_work=_always,
        wake=bench.woken.append,
        interval_s=0.001,
        clock=lambda: 0.0,  # type: ignore[arg-type,return-value]
    )

    running = asyncio.create_task(bench.keeper.run())
    await asyncio.sleep(0.05)

    assert not running.done()
    assert "Not looked at by a bug: costs." in caplog.text
    running.cancel()


async def test_metrics_carry_money_and_currency() -> None:
    bench = Bench()
    await bench.pass_minutes(61, tokens_per_minute=20_000)

    text = bench.metrics()

    labels = '{currency="USD",namespace="team-a",service="chat",tenant="acme"}'
    assert f"windlass_cost_per_hour{labels} 6.0" in text
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines()[2:] if line[0] != "#"
    }
    assert values[f"windlass_cost_total{labels}"] == pytest.approx(6.0)
    assert values[f"windlass_cost_per_million_tokens{labels}"] == pytest.approx(5.0)


async def test_labels_of_tenants_are_bounded() -> None:
    bench = Bench()
    names = [f"t-{number:03}" for number in range(150)]
    bench.snapshot = build_snapshot(
        build_gpu_class(pricePerHour="1"),
        *(build_tenant(name, [name]) for name in names),
        *(build_service("s", name, accelerator={"classes": ["h200"]}) for name in names),
        workloads={f"{name}/s": build_workload(1, gpu_class="h200", placed=1) for name in names},
    )

    lines = [line for line in bench.metrics().splitlines() if line.startswith("windlass_cost_per_hour{")]

    assert len(lines) == 101
    assert any('tenant="_other"' in line and line.endswith(" 50.0") for line in lines)
