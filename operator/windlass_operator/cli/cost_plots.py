"""Plots of `windlass cost`. Imported only where plots are asked for: matplotlib is an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from windlass_operator.domain.ownership import BreakEven, Level

Row = Mapping[str, Any]


def plot_tenants(folder: str, rows: Sequence[Row]) -> None:
    """Money per hour and per million tokens of each tenant."""
    if not rows:
        return
    currency = rows[0]["currency"] or "money"
    names = [row["tenant"] or "(none)" for row in rows]
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(rows)), layout="constrained")
    hour, million = figure.subplots(1, 2, sharey=True)
    _bars(hour, names, [row["per_hour"] for row in rows], f"{currency} per hour")
    _bars(million, names, [row["per_million_tokens"] or 0.0 for row in rows], f"{currency} per million tokens")
    hour.invert_yaxis()  # the axes share it
    _save(figure, folder, "cost-by-tenant.png")


def plot_optimisations(folder: str, rows: Sequence[Row], currency: str) -> None:
    """Money per million tokens of each run."""
    figure = Figure(figsize=(8, 1.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row["name"] for row in rows], [row["per_million_tokens"] for row in rows])
    axes.bar_label(bars, [f" {row['change']:+.0%}" for row in rows])
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(f"{currency} per million tokens")
    _save(figure, folder, "cost-by-optimisation.png")


def plot_ownership(folder: str, levels: Sequence[Level], point: BreakEven, names: tuple[str, str, str]) -> None:
    """Money per million tokens over levels of load, rented and owned."""
    rented, owned, currency = names
    shares = [level.utilisation for level in levels]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(shares, [level.rented_per_million or 0.0 for level in levels], marker="o", label=rented)
    axes.plot(shares, [level.owned_per_million or 0.0 for level in levels], marker="o", label=owned)
    if point.utilisation is not None:
        axes.axvline(point.utilisation, linestyle="--", color="grey", label=f"break-even {point.utilisation:.0%}")
    axes.set_yscale("log")
    axes.set_xlabel("mean share of the own machines' work")
    axes.set_ylabel(f"{currency} per million tokens")
    axes.legend()
    _save(figure, folder, "cost-rented-or-owned.png")


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], label: str) -> None:
    axes.barh(names, values)
    axes.set_xlabel(label)


def _save(figure: Figure, folder: str, name: str) -> None:
    """Write one picture; to standard error goes where, because standard output holds the figures."""
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
    click.echo(f"plot: {path}", err=True)
