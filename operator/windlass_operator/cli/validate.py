"""`windlass validate`: everything wrong with some files, before a cluster sees them."""

from __future__ import annotations

import click

from windlass_operator.api.load import Loaded, load_documents
from windlass_operator.cli.output import output_option, print_json, print_problems, problem_record


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@output_option("text", "json")
def validate(files: tuple[str, ...], output: str) -> int:
    """Check FILES (folders are read recursively, - is standard input) and report every error of every document.

    Unknown fields are errors, although the API server would drop them. Documents of other kinds are not judged.
    Exit code 1 when there is an error, 0 otherwise; warnings do not count.
    """
    loaded = load_documents(files)
    if output == "json":
        print_json(_record(loaded))
    else:
        print_problems(loaded.problems, "error")
        print_problems(loaded.warnings, "warning")
        click.echo(summarise(loaded))
    return 1 if loaded.problems else 0


def summarise(loaded: Loaded) -> str:
    """One line: what was read and what is wrong with it."""
    read = ", ".join(
        _count(number, noun)
        for number, noun in (
            (len(loaded.services), "InferenceService"),
            (len(loaded.tenants), "Tenant"),
            (len(loaded.gpu_classes), "GPUClass"),
            (len(loaded.batches), "BatchInference"),
            (len(loaded.foreign), "document of other kinds"),
        )
        if number
    )
    wrong = _count(len(loaded.problems), "error") if loaded.problems else "no errors"
    if loaded.warnings:
        wrong += ", " + _count(len(loaded.warnings), "warning")
    return f"{'invalid' if loaded.problems else 'valid'}: read {read or 'no usable object'}; {wrong}"


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    if noun.startswith("document"):
        return f"{number} {noun.replace('document', 'documents')}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def _record(loaded: Loaded) -> dict[str, object]:
    return {
        "valid": not loaded.problems,
        "services": len(loaded.services),
        "tenants": len(loaded.tenants),
        "gpuClasses": len(loaded.gpu_classes),
        "batches": len(loaded.batches),
        "foreign": len(loaded.foreign),
        "errors": [problem_record(problem) for problem in loaded.problems],
        "warnings": [problem_record(problem) for problem in loaded.warnings],
    }
