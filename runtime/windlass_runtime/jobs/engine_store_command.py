"""The shell of `windlass-runtime engine`: list, inspect, verify and evict plans of a store."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from windlass_runtime.engine.store import EngineStore, Entry, verify_plan
from windlass_runtime.errors import EngineError


def list_plans(root: Path, *, as_json: bool) -> None:
    """Print one line a plan."""
    entries = EngineStore(root).entries()
    if as_json:
        click.echo(json.dumps({"engines": [_describe(entry) for entry in entries]}))
        return
    table = Table("fingerprint", "model", "precision", "for", "tokens", "MB", "used", box=None)
    for entry in entries:
        identity = entry.manifest.identity
        table.add_row(
            entry.manifest.fingerprint[:12],
            f"{identity.architecture} {identity.model_digest[:8]}",
            identity.precision,
            f"{identity.backend} {','.join(identity.targets)}",
            str(identity.capacity),
            f"{entry.size / 1e6:.1f}",
            f"{max(0.0, time.time() - entry.last_used_s) / 3600:.1f} h ago",
        )
    Console().print(table)


def inspect_plan(root: Path, fingerprint: str, *, as_json: bool) -> None:
    """Print one manifest."""
    entry = find_by_prefix(EngineStore(root), fingerprint)
    if as_json:
        click.echo(json.dumps(_describe(entry) | json.loads(entry.manifest.to_json())))
    else:
        click.echo(f"{entry.plan}\n{entry.manifest.to_json()}", nl=False)


def verify_plans(root: Path, fingerprint: str | None, *, as_json: bool) -> None:
    """Check one or all. Raises EngineError naming the first damaged one, after checking all."""
    store = EngineStore(root)
    entries, faults = store.scan() if fingerprint is None else ([find_by_prefix(store, fingerprint)], {})
    for entry in entries:
        try:
            verify_plan(entry)
        except EngineError as exc:
            faults[entry.manifest.fingerprint] = exc
    problems = {entry.manifest.fingerprint: "" for entry in entries} | {name: str(exc) for name, exc in faults.items()}
    if as_json:
        results = [{"fingerprint": name, "sound": not text, "problem": text} for name, text in problems.items()]
        click.echo(json.dumps({"engines": results}))
    else:
        for name, text in problems.items():
            click.echo(f"{name[:12]}  {text or 'sound'}")
    if faults:
        raise next(iter(faults.values()))


def evict_plans(root: Path, keep_bytes: int, idle_s: float, *, as_json: bool) -> None:
    """Evict and print what became of each candidate."""
    results = EngineStore(root).evict(keep_bytes, idle_s=idle_s)
    if as_json:
        click.echo(json.dumps({"engines": [dataclasses.asdict(result) for result in results]}))
        return
    for result in results:
        did = "removed" if result.evicted else "kept"
        click.echo(f"{result.fingerprint[:12]}  {did}: {result.reason}, {result.size / 1e6:.1f} MB")


def find_by_prefix(store: EngineStore, prefix: str) -> Entry:
    """The only plan whose fingerprint begins so. Raises EngineError."""
    found = [entry for entry in store.entries() if entry.manifest.fingerprint.startswith(prefix)]
    if len(found) != 1:
        names = ", ".join(entry.manifest.fingerprint[:12] for entry in found) or "none"
        raise EngineError(f"store {store.root}: expected one plan that begins with {prefix!r}, found {names}")
    return found[0]


def _describe(entry: Entry) -> dict[str, Any]:
    identity = dataclasses.asdict(entry.manifest.identity)
    values = {"fingerprint": entry.manifest.fingerprint, "plan": str(entry.plan), "bytes": entry.size}
    return values | {"last_used_unix_s": round(entry.last_used_s), "identity": identity}
