"""`windlass generate`: write CRDs, their chart and docs/reference/ from the API types, or check them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from windlass_operator.api.generate import render_files
from windlass_operator.api.kinds import KINDS
from windlass_operator.errors import WindlassError

_MARK: Final = "operator/windlass_operator/api"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 and name each file that is not current.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Repository root; default: searched upwards.",
)
def generate(check: bool, root: Path | None) -> int:
    """Write CRDs, their chart and reference docs from the API types."""
    base = find_root(root or Path.cwd())
    files = render_files({kind.example: _read_example(base, kind.example) for kind in KINDS})
    stale = [name for name, text in files.items() if _current(base / name) != text]
    if check:
        for name in stale:
            click.echo(f"{name}: expected what `windlass generate` writes, found something else", err=True)
        return 1 if stale else 0
    for name in stale:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(files[name], encoding="utf-8")
    click.echo(f"{len(files)} files are current, {len(stale)} written")
    return 0


def find_root(start: Path) -> Path:
    """Return the closest folder at or above `start` that is the repository. Raises WindlassError."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / _MARK).is_dir():
            return folder
    raise WindlassError(
        f"repository root: expected a folder with {_MARK} at or above {start}, found none; name it with --root"
    )


def _read_example(base: Path, name: str) -> str:
    try:
        return (base / "examples" / name).read_text(encoding="utf-8")
    except OSError as exc:
        raise WindlassError(f"examples/{name}: expected the example of the reference, found {exc.strerror}") from exc


def _current(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return None
