"""`windlass up FILE...`: the fleet of some files on this machine, without a cluster.

The same objects, planner and renderer as in a cluster; replicas run as local processes behind a local gateway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
import socket
import sys
from collections.abc import Mapping

import click
from rich.console import Console

from windlass_operator.api.load import load_documents
from windlass_operator.api.loaded import Loaded
from windlass_operator.cli.output import output_option, wants_colour
from windlass_operator.cli.up_session import Options, Session
from windlass_operator.cli.up_state import choose_state_dir, hold_state_dir
from windlass_operator.cli.up_view import JsonView, LineView, TableView, View
from windlass_operator.cluster.local_machine import describe_machine, observe_gpus
from windlass_operator.cluster.local_replicas import LocalSettings, visible_cores
from windlass_operator.errors import InvalidInput


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True), metavar="FILE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the gateway.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--once", is_flag=True, help="Fail if the services do not become ready; print the endpoints and stay.")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, for --once.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Where keys, routing table and logs go. Default: below XDG_STATE_HOME, one folder per set of files.",
)
@output_option("text", "json")
def up(
    files: tuple[str, ...],
    host: str,
    port: int,
    once: bool,
    timeout: float,
    state_dir: pathlib.Path | None,
    output: str,
) -> int:
    """Run the services of FILE... (files or folders) on this machine until interrupted.

    Edits to the files are applied while it runs. Exit code 0 after a drain, 1 for broken files or, with --once, when
    the services cannot become ready.
    """
    loaded = load_documents(files)
    if loaded.problems:
        raise InvalidInput(loaded.problems)
    environment = dict(os.environ)
    folder = (state_dir or choose_state_dir(files, environment)).resolve()
    show_keys = output == "text" and sys.stdout.isatty()
    options = Options(files, host, port, once, timeout, show_keys, folder, environment)
    with hold_state_dir(folder):
        for old in (folder / "logs").glob("*.log*"):
            old.unlink()
        logging.basicConfig(
            filename=folder / "up.log",
            filemode="w",
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )
        return asyncio.run(_run(options, loaded, output))


async def _run(options: Options, loaded: Loaded, output: str) -> int:
    gpus = await observe_gpus()
    settings = LocalSettings(
        state_dir=options.state_dir,
        command=_runtime_command(options.env),
        env=options.env,
        cores=visible_cores(),
        gpus=tuple(gpu.index for gpu in gpus),
    )
    view = _choose_view(output)
    try:
        view.tell("state", f"state folder: {options.state_dir}", stateDir=str(options.state_dir))
        return await Session(options, settings, describe_machine(socket.gethostname(), gpus), view).run(loaded)
    finally:
        view.close()


def _choose_view(output: str) -> View:
    if output == "json":
        return JsonView()
    if wants_colour(sys.stdout):
        return TableView(Console())
    return LineView()


def _runtime_command(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The runtime of this very installation; WINDLASS_RUNTIME_MODULE names another module that speaks its start
    protocol.
    """
    return (sys.executable, "-m", environment.get("WINDLASS_RUNTIME_MODULE", "windlass_runtime"))
