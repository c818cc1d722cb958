"""`windlass metrics-adapter`: the metrics APIs as a process, and rules for another adapter in its place."""

from __future__ import annotations

import asyncio
import json
import logging
import os

import click
import yaml

from windlass_operator.serve.rules import adapter_rules
from windlass_operator.serve.settings import parse_adapter_settings


@click.group("metrics-adapter")
def metrics_adapter() -> None:
    """Serve the metrics of replicas to autoscalers."""


@metrics_adapter.command()
@click.option(
    "--kubeconfig",
    metavar="FILE",
    help="Kubeconfig; default: the pod's service account, else KUBECONFIG or ~/.kube/config.",
)
@click.option("--source", metavar="NAME", help="replicas or prometheus.")
@click.option("--prometheus-url", metavar="URL", help="Address of a Prometheus, for the source prometheus.")
@click.option("--port", metavar="PORT", help="Port of the API, over TLS.")
@click.option("--probe-port", metavar="PORT", help="Port of /healthz, /readyz and /metrics; 0 picks a free one.")
@click.option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
def run(**flags: str | None) -> None:
    """Serve custom.metrics.k8s.io and external.metrics.k8s.io until SIGTERM.

    Every setting is also a WINDLASS_ADAPTER_* variable; flags win.
    """
    settings = parse_adapter_settings(os.environ, flags)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    from windlass_operator.serve.process import run_adapter

    asyncio.run(run_adapter(settings))


@metrics_adapter.command()
@click.option("--window", default=60, show_default=True, type=click.IntRange(10, 600), help="Seconds of a rate.")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def rules(window: int, output: str) -> None:
    """Print rules for prometheus-adapter, for a cluster whose custom.metrics.k8s.io it serves already."""
    made = adapter_rules(window)
    click.echo(json.dumps(made, indent=2) if output == "json" else yaml.safe_dump(made, sort_keys=False, width=10_000))
