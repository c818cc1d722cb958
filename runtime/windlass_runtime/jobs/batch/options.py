"""Options of `windlass-runtime batch` beside those of a LaunchSpec. Imports nothing heavy: every command loads this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def batch_options(command: Any) -> Any:
    """Add them to a command."""
    options = [
        click.option("--input", "requests", required=True, type=click.Path(path_type=Path), help="Requests, JSONL."),
        click.option("--results", required=True, type=click.Path(path_type=Path), help="Folder of this batch alone."),
        click.option("--launch-spec", "launch_file", type=click.Path(path_type=Path), help="In the place of MODEL."),
        click.option("--served-name", help="The `model` value of requests; default: the last part of MODEL."),
        click.option("--shards", type=click.IntRange(1, 99999), default=1, help="Parts of the batch."),
        click.option(
            "--shard",
            type=click.IntRange(min=0),
            envvar="JOB_COMPLETION_INDEX",
            help="Part of this worker, from 0; default: what Kubernetes sets in Indexed Jobs, else 0.",
        ),
        click.option("--concurrency", type=click.IntRange(1, 4096), help="Rows at once; default: what fits a replica."),
        click.option("--attempts", type=click.IntRange(min=1), default=3, help="Tries of a row that the server fails."),
        click.option("--timeout-s", type=click.FloatRange(min=0, min_open=True), default=600.0, help="For one answer."),
        click.option(
            "--give-up-s",
            type=click.FloatRange(min=0),
            help="Time without a server; default: 900, and 60 for a model that is served here.",
        ),
        click.option(
            "--straggler-after-s",
            type=click.FloatRange(min=0),
            default=30.0,
            help="Silence after which the rows of another worker are computed here too.",
        ),
        click.option("--api-key-file", type=click.Path(path_type=Path), help="Key for a server; default: none."),
        click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text"),
    ]
    for option in reversed(options):
        command = option(command)
    return command
