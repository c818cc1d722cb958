"""How a command ends: faults raised on purpose are one line on stderr and exit code 1."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click


@contextlib.contextmanager
def exit_on_fault() -> Iterator[None]:
    """End the process with code 1 on a RuntimeFault or an OSError."""
    from windlass_runtime.errors import RuntimeFault

    try:
        yield
    except (RuntimeFault, OSError) as exc:
        click.echo(f"windlass-runtime: {exc}", err=True)
        sys.stdout.flush()
        # A thread may still be inside native code, which a normal exit would wait for or tear down.
        os._exit(1)
