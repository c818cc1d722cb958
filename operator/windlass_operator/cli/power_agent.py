"""`windlass power-agent`: power profiles on the GPUs of one node. Parses the arguments and calls one function."""

from __future__ import annotations

import asyncio
import logging
import os

import click

from windlass_operator.power.settings import DRY_RUN, PowerSettings, parse_power_settings


@click.group("power-agent")
def power_agent() -> None:
    """Give the GPUs of this node the power profiles of their services."""


@power_agent.command()
@click.option("--node", metavar="NAME", help="Name of this node.")
@click.option(
    "--kubeconfig",
    metavar="FILE",
    help="Kubeconfig; default: the pod's service account, else KUBECONFIG or ~/.kube/config.",
)
@click.option("--dry-run", "mode", flag_value=DRY_RUN, help="Say what would be written, and write nothing.")
@click.option("--state-folder", metavar="FOLDER", help="Where the node keeps what GPUs were like before.")
@click.option("--pod-resources-socket", metavar="FILE", help="Socket of the kubelet's pod-resources API.")
@click.option("--interval", "interval_s", metavar="SECONDS", help="Seconds between two looks.")
@click.option("--probe-port", metavar="PORT", help="Port of /healthz, /readyz and /metrics; 0 picks a free one.")
@click.option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
def run(**flags: str | None) -> None:
    """Apply power profiles until SIGTERM, then restore every GPU.

    Every setting is also a WINDLASS_POWER_* variable; flags win.
    """
    settings = _start(flags)

    from windlass_operator.power.process import run_agent

    asyncio.run(run_agent(settings))


@power_agent.command()
@click.option("--state-folder", metavar="FOLDER", help="Where the node keeps what GPUs were like before.")
@click.option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
def restore(**flags: str | None) -> None:
    """Restore every GPU that an agent changed and could not restore, without a cluster."""
    settings = _start(flags)

    from windlass_operator.power.process import restore_once

    asyncio.run(restore_once(settings))


def _start(flags: dict[str, str | None]) -> PowerSettings:
    settings = parse_power_settings(os.environ, flags)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    return settings
