"""`windlass cost`: what tenants spend, what optimisations save, and whether to rent or to own."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.cli.cost_files import (
    USAGE_COLUMNS,
    PriceList,
    Throughput,
    Usage,
    read_prices,
    read_throughput,
    read_usage,
)
from windlass_operator.cli.output import output_option, print_json
from windlass_operator.domain import ownership
from windlass_operator.domain.cost import format_money, money_per_million
from windlass_operator.errors import InvalidInput, Problem

Row = Mapping[str, Any]
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Levels of load that are compared: mean shares of the own machines' work."""

SHARES = {"utilisation": "{:.0%}", "share": "{:.1%}", "change": "{:+.0%}"}
"""Columns that people read as percent."""

plot_option = click.option(
    "--plot", metavar="DIR", help="Also draw plots into a folder; needs matplotlib: windlass[report]."
)


@click.group()
def cost() -> None:
    """What serving costs: by tenant, by optimisation, rented or owned."""


@cost.command()
@click.option("--usage", metavar="FILE", help="Read what `-o csv` or `-o json` printed earlier instead of a cluster.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig; default: as for kubectl.")
@click.option("--namespace", "-n", metavar="NAME", default="", help="Only services of this namespace.")
@output_option("table", "json", "csv")
@plot_option
def show(usage: str | None, kubeconfig: str | None, namespace: str, output: str, plot: str | None) -> None:
    """Money per hour and per million tokens, by tenant and service, from status.cost of a cluster's services."""
    records = read_usage(usage) if usage is not None else asyncio.run(_read_cluster(kubeconfig or "", namespace))
    records = sorted(
        (record for record in records if namespace in ("", record.namespace)),
        key=lambda record: (record.tenant, record.namespace, record.service),
    )
    _one_currency(records)
    rows = [_usage_row(record) for record in records]
    totals = sum_by_tenant(records)
    if output == "json":
        print_json({"usage": rows, "tenants": totals})
    elif output == "csv":
        print_csv(rows, USAGE_COLUMNS)
    elif not records:
        click.echo("no service has a cost: set spec.pricePerHour of its GPUClass, see docs/howto/cost.md")
    else:
        print_table(rows, USAGE_COLUMNS)
        click.echo()
        print_table(totals, ("tenant", "currency", "per_hour", "tokens_per_hour", "per_million_tokens", "share"))
    if plot is not None:
        _plots().plot_tenants(plot, totals)


@cost.command()
@click.argument("figures", metavar="FILE")
@output_option("table", "json", "csv")
@plot_option
def optimisations(figures: str, output: str, plot: str | None) -> None:
    """Money per million tokens of each run in FILE of measured throughput, against its first run."""
    throughput = read_throughput(figures)
    rows = price_runs(throughput)
    columns = ("name", "tokens_per_second", "per_million_tokens", "change", "quality", "source")
    if output == "json":
        print_json({**throughput.model_dump(exclude={"runs"}), "runs": rows})
    elif output == "csv":
        print_csv(rows, columns)
    else:
        _say(throughput.note)
        print_table(rows, columns)
    if plot is not None:
        _plots().plot_optimisations(plot, rows, throughput.currency)


@cost.command()
@click.argument("prices", metavar="FILE")
@click.option("--cloud", metavar="NAME", help="Offer of the price list; default: its first.")
@click.option("--own", metavar="NAME", help="Machine of the price list; default: its first.")
@click.option(
    "--tokens-per-hour", type=click.FloatRange(min=0, min_open=True), help="Mean load; default: half of one machine."
)
@click.option(
    "--peak", default=2.0, show_default=True, type=click.FloatRange(min=1), help="Busiest hour per mean hour."
)
@click.option(
    "--headroom", default=0.0, show_default=True, type=click.FloatRange(min=0), help="Share rented beyond the load."
)
@output_option("table", "json", "csv")
@plot_option
def compare(
    prices: str,
    cloud: str | None,
    own: str | None,
    tokens_per_hour: float | None,
    peak: float,
    headroom: float,
    output: str,
    plot: str | None,
) -> None:
    """Rented against owned GPUs over levels of load, with the break-even point, from FILE of prices."""
    listed = read_prices(prices)
    rented, owned = listed.rented(cloud), listed.owned(own)
    load = tokens_per_hour / 3600 if tokens_per_hour is not None else owned.machine_tokens_per_s / 2
    # Without a load to serve nothing has to be sized for its peak.
    machines = ownership.machines_for(load, peak, owned) if tokens_per_hour is not None else 1
    now = ownership.compare_at(load / (machines * owned.machine_tokens_per_s), machines, rented, owned, headroom)
    point = ownership.find_break_even(now, rented, owned, headroom)
    levels = [ownership.compare_at(share, machines, rented, owned, headroom) for share in LEVELS]
    rows = [_level_row(level) for level in levels]
    columns = tuple(rows[0])
    summary = _summarise(listed, rented, owned, now, point)
    if output == "json":
        print_json({**summary, "levels": rows})
    elif output == "csv":
        print_csv(rows, columns)
    else:
        _say(listed.note)
        print_table(rows, columns)
        click.echo()
        click.echo(_tell(summary))
    if plot is not None:
        _plots().plot_ownership(plot, levels, point, (rented.name, owned.name, listed.currency))


def sum_by_tenant(records: Iterable[Usage]) -> list[dict[str, Any]]:
    """What each tenant spends and serves. Money whose tokens are unknown counts for the hour only."""
    groups: dict[str, list[Usage]] = {}
    for record in records:
        groups.setdefault(record.tenant, []).append(record)
    whole = sum(record.per_hour for group in groups.values() for record in group)
    rows = []
    for tenant, group in sorted(groups.items()):
        known = [record for record in group if record.tokens_per_hour is not None]
        tokens = sum(record.tokens_per_hour or 0.0 for record in known)
        spending = sum(record.per_hour for record in group)
        per_million = money_per_million(sum(record.per_hour for record in known), tokens)
        rows.append(
            {
                "tenant": tenant,
                "currency": group[0].currency,
                "per_hour": _money(spending),
                "tokens_per_hour": round(tokens) if known else None,
                "per_million_tokens": _money(per_million),
                "share": round(spending / whole, 4) if whole else None,
            }
        )
    return rows


def price_runs(throughput: Throughput) -> list[dict[str, Any]]:
    """Money per million tokens of each run, and its change against the first."""
    found = []
    for run in throughput.runs:
        per_million = throughput.price_per_gpu_hour * run.gpus / (run.tokens_per_second * 3600) * 1e6
        found.append((run, per_million))
    baseline = found[0][1]
    return [
        {
            "name": run.name,
            "tokens_per_second": run.tokens_per_second,
            "gpus": run.gpus,
            "per_million_tokens": _money(per_million),
            "change": round(per_million / baseline - 1, 4),
            "quality": run.quality,
            "source": run.source,
        }
        for run, per_million in found
    ]


async def _read_cluster(kubeconfig: str, namespace: str) -> list[Usage]:
    """Costs of all services of a cluster. Raises ClusterUnavailable."""
    from windlass_operator.cluster.kubernetes_access import access_loader
    from windlass_operator.cluster.kubernetes_client import KubernetesClient
    from windlass_operator.cluster.kubernetes_kinds import KINDS

    async with KubernetesClient(access_loader(kubeconfig), 30.0) as client:
        path = KINDS["InferenceService"].path(namespace)
        services = [InferenceService.model_validate(item) async for item in client.list_items(path, "")]
    return [_usage_of(service) for service in services if service.status.cost is not None]


def _usage_of(service: InferenceService) -> Usage:
    known = service.status.cost
    assert known is not None
    return Usage(
        tenant=service.status.tenant,
        namespace=service.metadata.namespace,
        service=service.metadata.name,
        currency=known.currency,
        per_hour=float(known.per_hour),
        tokens_per_hour=known.tokens_per_hour,
        per_million_tokens=float(known.per_million_tokens) if known.per_million_tokens is not None else None,
    )


def _one_currency(records: Sequence[Usage]) -> None:
    currencies = sorted({record.currency for record in records})
    if len(currencies) > 1:
        raise InvalidInput((Problem("currency", ", ".join(currencies), "one currency, because money is added up"),))


def _usage_row(record: Usage) -> dict[str, Any]:
    return {
        **record.model_dump(),
        "per_hour": _money(record.per_hour),
        "per_million_tokens": _money(record.per_million),
    }


def _level_row(level: ownership.Level) -> dict[str, Any]:
    rented, owned = level.rented_per_million, level.owned_per_million
    return {
        "utilisation": level.utilisation,
        "tokens_per_hour": round(level.tokens_per_hour),
        "rented_per_hour": _money(level.rented_per_hour),
        "owned_per_hour": _money(level.owned_per_hour),
        "rented_per_million": _money(rented),
        "owned_per_million": _money(owned),
        "cheaper": "own" if level.owned_per_hour <= level.rented_per_hour else "rent",
    }


def _summarise(
    listed: PriceList,
    rented: ownership.Rented,
    owned: ownership.Owned,
    now: ownership.Level,
    point: ownership.BreakEven,
) -> dict[str, Any]:
    return {
        "currency": listed.currency,
        "as_of": listed.as_of,
        "note": listed.note,
        "cloud": rented.name,
        "own": owned.name,
        "machines": now.machines,
        "present": _level_row(now),
        "break_even": {
            "utilisation": None if point.utilisation is None else round(point.utilisation, 4),
            "tokens_per_hour": None if point.tokens_per_hour is None else round(point.tokens_per_hour),
            "payback_months": None if point.payback_months is None else round(point.payback_months, 1),
        },
    }


def _tell(summary: Mapping[str, Any]) -> str:
    """The summary in words."""
    present, point, currency = summary["present"], summary["break_even"], summary["currency"]
    machines = f"{summary['machines']} x {summary['own']}"
    lines = [
        f"prices as of {summary['as_of']}; {summary['cloud']} against {machines}",
        (
            f"present load: {present['utilisation']:.0%} of the machines, {present['cheaper']} is cheaper "
            f"({present['rented_per_hour']} rented, {present['owned_per_hour']} owned, {currency} per hour)"
        ),
    ]
    if point["utilisation"] is None:
        lines.append("break-even: none, owning costs more even at full load")
    else:
        lines.append(
            f"break-even: {point['utilisation']:.1%} of the machines, {point['tokens_per_hour']} tokens per hour"
        )
    months = point["payback_months"]
    lines.append(
        "payback: never at the present load" if months is None else f"payback: {months} months at the present load"
    )
    return "\n".join(lines)


def print_csv(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Print rows with a header; what is not known is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if row.get(name) is None else row[name] for name in columns})
    click.echo(out.getvalue(), nl=False)


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print aligned columns; numbers to the right, empty columns left out."""
    shown = [name for name in columns if any(row.get(name) not in (None, "") for row in rows)]
    cells = [
        [name.replace("_", " ").upper() for name in shown],
        *([_cell(name, row.get(name)) for name in shown] for row in rows),
    ]
    widths = [max(len(line[index]) for line in cells) for index in range(len(shown))]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in shown]
    for line in cells:
        parts = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in SHARES:
        return SHARES[name].format(value)
    return format_money(value) if isinstance(value, float) else str(value)


def _money(amount: float | None) -> float | None:
    """Three significant digits, as in a status."""
    return None if amount is None else float(format_money(amount))


def _say(note: str) -> None:
    """Notes go to standard error, so that a table can be piped."""
    if note:
        click.echo(f"note: {' '.join(note.split())}", err=True)


def _plots() -> Any:
    """The plotting module. Raises ClickException without matplotlib, which only plots need."""
    try:
        from windlass_operator.cli import cost_plots
    except ModuleNotFoundError as exc:
        raise click.ClickException(f"--plot: module {exc.name} is missing; install windlass[report]") from exc
    return cost_plots
