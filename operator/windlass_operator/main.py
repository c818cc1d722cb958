"""The `windlass` command: a table of sub-commands, loaded on use, and one place that turns errors into exit codes.

Loading on use keeps `windlass validate` free of kopf and of the Kubernetes client, and one missing sub-command leaves
the others usable.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Mapping
from typing import Final

import click

from windlass_operator.errors import InvalidInput, WindlassError

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "validate": ("windlass_operator.cli.validate:validate", "Report every error of every document."),
    "render": ("windlass_operator.cli.render:render", "Print the objects the operator would apply."),
    "explain": ("windlass_operator.cli.explain:explain", "Say in words what was chosen and why."),
    "plan": ("windlass_operator.cli.plan:plan", "Say what applying some files to a cluster would change."),
    "cost": ("windlass_operator.cli.cost:cost", "Say what serving costs: by tenant, by optimisation, rented or owned."),
    "shape": ("windlass_operator.cli.shape:shape", "Print the sizes of a checkpoint for spec.model.shape."),
    "up": ("windlass_operator.cli.up:up", "Run the services of some files on this machine."),
    "operator": ("windlass_operator.cli.operator:operator", "The control plane itself."),
    "metrics-adapter": (
        "windlass_operator.cli.metrics_adapter:metrics_adapter",
        "Serve the metrics of replicas to autoscalers.",
    ),
    "power-agent": (
        "windlass_operator.cli.power_agent:power_agent",
        "Give the GPUs of a node the power profiles of their services.",
    ),
    "generate": ("windlass_operator.cli.generate:generate", "Write CRDs and reference docs from the API types."),
}
"""Name -> (where it lies, one line for the overview). The line is here so that `--help` imports no sub-command."""

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143


class CommandTable(click.Group):
    """A group whose sub-commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (signature of click)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if ctx.resilient_parsing:
            return _outline(cmd_name)
        return load_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _outline(name: str) -> click.Command:
    return click.Command(name, short_help=COMMANDS[name][1])


def load_command(name: str) -> click.Command:
    """Import one sub-command. Raises ClickException when a module is not installed."""
    where, _ = COMMANDS[name]
    module_name, _, attribute = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        raise click.ClickException(
            f"windlass {name} cannot start: module {exc.name} is missing; install windlass[operator] of one version",
        ) from exc
    command = getattr(module, attribute)
    assert isinstance(command, click.Command), f"{where} is no click command"
    return command


@click.group(cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="windlass", prog_name="windlass")
def windlass() -> None:
    """Serve many models to many teams with few GPUs."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (failed), 2 (wrong usage) or 130 (interrupted).

    Raises SystemExit with 143 on a SIGTERM that comes before the sub-command handles it: as the first process of a
    container it would otherwise be ignored while modules are imported.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        result = windlass.main(arguments, prog_name="windlass", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except InvalidInput as exc:
        click.echo(str(exc), err=True)
        return EXIT_FAILED
    except WindlassError as exc:
        click.echo(f"Error: {exc}", err=True)
        return EXIT_FAILED
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`windlass render | head`); silence the flush at interpreter exit too.
        sys.stdout = None
        return EXIT_FAILED
    return result if isinstance(result, int) else 0
