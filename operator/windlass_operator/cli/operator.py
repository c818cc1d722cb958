"""`windlass operator run`: the control plane as a process. Parses the arguments and calls one function."""

from __future__ import annotations

import asyncio
import logging
import os

import click

from windlass_operator.settings import parse_settings


@click.group()
def operator() -> None:
    """The control plane itself."""


@operator.command()
@click.option(
    "--kubeconfig",
    metavar="FILE",
    help="Kubeconfig; default: the pod's service account, else KUBECONFIG or ~/.kube/config.",
)
@click.option(
    "--namespace", "-n", "namespaces", multiple=True, metavar="NAME", help="Serve only this namespace; may be repeated."
)
@click.option("--lease-namespace", metavar="NAME", help="Namespace of the leader election's Lease.")
@click.option("--probe-port", metavar="PORT", help="Port of /healthz, /readyz and /metrics; 0 picks a free one.")
@click.option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
def run(
    kubeconfig: str | None,
    namespaces: tuple[str, ...],
    lease_namespace: str | None,
    probe_port: str | None,
    log_level: str | None,
) -> None:
    """Reconcile InferenceServices, Tenants and GPUClasses of a cluster until SIGTERM.

    Every setting is also a WINDLASS_* variable; flags win.
    """
    settings = parse_settings(
        os.environ,
        {
            "kubeconfig": kubeconfig,
            "namespaces": ",".join(namespaces) or None,
            "lease_namespace": lease_namespace,
            "probe_port": probe_port,
            "log_level": log_level,
        },
    )
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[settings.log_level]))

    from windlass_operator.reconcile.process import run_operator
    from windlass_operator.serve.token_usage import open_usage

    asyncio.run(run_operator(settings, open_usage=open_usage))
