"""What `windlass up` shows: one row per object, as a live table, as plain lines, or as JSON events.

Rows are computed purely.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from windlass_operator.api.meta import Condition
from windlass_operator.api.v1alpha1.canary import CanaryPhase
from windlass_operator.api.v1alpha1.inference_service import InferenceService, InferenceServiceStatus
from windlass_operator.domain.snapshot import Key, Snapshot


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One object as the user sees it."""

    object: str
    phase: str
    """`Ready`, or why not in one word."""
    ready: str
    """`1/2` replicas for services, empty for other kinds."""
    url: str
    """Base URL for OpenAI clients; empty for other kinds."""
    message: str
    owner: str = ""
    """Whose key opens it: an entry of the key file, or a tenant with keys of its own."""
    needs_a_cluster: tuple[str, ...] = ()
    """Kinds of its objects that are rendered and stored, but act only in a cluster."""


@dataclasses.dataclass(frozen=True, slots=True)
class Extras:
    """What the cluster's snapshot does not know."""

    gateway_url: str
    owners: Mapping[Key, str]
    needs_a_cluster: Mapping[Key, tuple[str, ...]]


def plan_rows(snapshot: Snapshot, extras: Extras) -> tuple[Row, ...]:
    """Build the rows: services first, they are what one waits for."""
    services = tuple(_service_row(key, snapshot, extras) for key in sorted(snapshot.services))
    tenants = tuple(_row(f"Tenant {name}", item.status.conditions) for name, item in sorted(snapshot.tenants.items()))
    classes = tuple(
        _row(f"GPUClass {name}", item.status.conditions) for name, item in sorted(snapshot.gpu_classes.items())
    )
    return services + tenants + classes


def _service_row(key: Key, snapshot: Snapshot, extras: Extras) -> Row:
    status, workload = snapshot.services[key].status, snapshot.workloads.get(key)
    row = _row(str(key), status.conditions)
    replicas = f"{workload.ready}/{workload.wanted}" if workload is not None else "0/0"
    url = f"{extras.gateway_url}/{key.namespace}/{key.name}/v1" if extras.gateway_url else ""
    return dataclasses.replace(
        row,
        ready=replicas,
        url=url,
        message="; ".join(filter(None, (row.message, _accelerator(snapshot.services[key]), *_canaries(status)))),
        owner=extras.owners.get(key, ""),
        needs_a_cluster=extras.needs_a_cluster.get(key, ()),
    )


def _canaries(status: InferenceServiceStatus) -> Iterator[str]:
    """How each canary stands, in a few words."""
    for canary in status.canaries:
        share = f"{canary.phase.value}, {canary.traffic_percent} % of the traffic"
        reason = f" ({canary.message})" if canary.phase is CanaryPhase.ABORTED else ""
        yield f"canary {canary.name}: {share}{reason}"


def _accelerator(service: InferenceService) -> str:
    """Where a service that asked for a GPU computes, in the planner's words; empty for one that did not ask."""
    if service.spec.accelerator is None:
        return ""
    chosen = (item for item in service.status.decisions if item.topic == "accelerator")
    return next((f"on {item.choice}: {item.reason}" for item in chosen), "")


def _row(name: str, conditions: Sequence[Condition]) -> Row:
    summary = next((condition for condition in conditions if condition.type == "Ready"), None)
    if summary is None:
        return Row(name, "Pending", "", "", "not looked at yet")
    return Row(name, "Ready" if summary.status == "True" else summary.reason, "", "", summary.message)


class View(Protocol):
    """Where rows and events go."""

    def show(self, rows: Sequence[Row]) -> None:
        """Show the newest rows."""
        ...

    def tell(self, event: str, text: str, **fields: Any) -> None:
        """Tell one event; `text` is for people, `event` and `fields` are for machines."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


class JsonView:
    """One JSON object per line; a row is written when it changed."""

    def __init__(self) -> None:
        self._shown: dict[str, Row] = {}

    def show(self, rows: Sequence[Row]) -> None:
        """Write the rows that changed, and those that went."""
        for row in rows:
            if self._shown.get(row.object) != row:
                self._write({"event": "object", **dataclasses.asdict(row)})
        names = {row.object for row in rows}
        for name in self._shown.keys() - names:
            self._write({"event": "object", "object": name, "phase": "Removed"})
        self._shown = {row.object: row for row in rows}

    def tell(self, event: str, text: str, **fields: Any) -> None:
        """Write the event."""
        self._write({"event": event, "message": text, **fields})

    def close(self) -> None:
        """Nothing to end."""

    def _write(self, value: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()


class LineView:
    """Plain lines for logs and pipes; a row is written when it changed."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def show(self, rows: Sequence[Row]) -> None:
        """Write the rows that changed, and those that went."""
        lines = {row.object: "  ".join(filter(None, (row.object, row.phase, row.ready, row.message))) for row in rows}
        for name, line in lines.items():
            if self._shown.get(name) != line:
                click.echo(line)
        for name in self._shown.keys() - lines.keys():
            click.echo(f"{name}  Removed")
        self._shown = lines

    def tell(self, event: str, text: str, **fields: Any) -> None:  # noqa: ARG002 - people read the text
        """Write the text."""
        click.echo(text)

    def close(self) -> None:
        """Nothing to end."""


class TableView:
    """A table that stays at the bottom of a terminal, with events above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def show(self, rows: Sequence[Row]) -> None:
        """Redraw."""
        self._live.update(render_table(rows), refresh=True)

    def tell(self, event: str, text: str, **fields: Any) -> None:  # noqa: ARG002 - people read the text
        """Print above the table."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last picture on the screen."""
        self._live.stop()


def render_table(rows: Sequence[Row]) -> Table:
    """Draw the rows."""
    table = Table(box=None, pad_edge=False)
    for heading in ("OBJECT", "STATE", "READY"):
        table.add_column(heading, no_wrap=True)
    table.add_column("URL", overflow="fold")
    table.add_column("REASON", overflow="fold")
    for row in rows:
        # Texts, not markup: messages and names may hold square brackets.
        state = Text(row.phase, "green" if row.phase == "Ready" else "yellow")
        table.add_row(Text(row.object), state, row.ready, Text(row.url), Text(row.message))
    return table
