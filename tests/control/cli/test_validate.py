"""`windlass validate` as a user runs it: messages, forms of output, exit codes, and no crash on any text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.broken_inputs import BROKEN_INPUTS, FOLDER, Expected
from windlass_operator.api.kinds import KINDS
from windlass_operator.api.load import load_documents
from windlass_operator.api.schema import structural_schema
from windlass_operator.cli.output import print_problems
from windlass_operator.errors import Problem
from windlass_operator.main import run

EXAMPLES = FOLDER.parents[1] / "examples"

SERVICE = """\
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata:
  name: chat
spec:
  model:
    uri: hf://org/name
"""

TENANT = """\
---
apiVersion: windlass.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec: {namespaces: [team-acme]}
"""


def write(folder: Path, text: str, name: str = "a.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(("name", "expected"), BROKEN_INPUTS.items(), ids=BROKEN_INPUTS)
def test_a_broken_input_gets_its_own_errors(name: str, expected: list[Expected]) -> None:
    problems = load_documents([FOLDER / name]).problems

    assert [(problem.line, problem.path) for problem in problems] == [(line, path) for line, path, _, _ in expected]
    for problem, (_, _, found, wanted) in zip(problems, expected, strict=True):
        assert found in problem.found
        assert wanted in problem.expected
        assert problem.source == str(FOLDER / name)


def test_every_broken_input_is_in_the_table_and_has_an_error() -> None:
    assert sorted(BROKEN_INPUTS) == sorted(file.name for file in FOLDER.iterdir())
    assert len(BROKEN_INPUTS) >= 40
    assert all(BROKEN_INPUTS.values())


def test_no_two_broken_inputs_are_told_the_same() -> None:
    told = [tuple((path, found, expected) for _, path, found, expected in rows) for rows in BROKEN_INPUTS.values()]

    assert len(set(told)) >= len(told) - 2  # a missing field reads the same in two kinds, one shape in YAML and JSON


def test_an_error_is_one_line_with_place_object_field_and_both_sides(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path, SERVICE + "  replicas: many\n")

    code = run(["validate", file])

    assert code == 1
    place = f"{file}:8: error: InferenceService default/chat: spec.replicas: "
    assert capsys.readouterr().out.splitlines() == [
        place + 'expected a whole number of 0 to 1000, found "many"',
        "invalid: read no usable object; 1 error",
    ]


def test_sound_files_are_summed_up_in_one_line(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path, SERVICE + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")

    code = run(["validate", file])

    assert code == 0
    assert capsys.readouterr().out == "valid: read 1 InferenceService, 1 document of other kinds; no errors\n"


def test_the_examples_are_valid_without_a_warning(capsys: Any) -> None:
    code = run(["validate", str(EXAMPLES / "quickstart"), str(EXAMPLES / "fleet")])

    assert code == 0
    assert capsys.readouterr().out == "valid: read 5 InferenceServices, 3 Tenants, 3 GPUClasses; no errors\n"


def test_json_holds_the_same_problems_for_machines(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path, SERVICE + "  tier: realtime\n")

    code = run(["validate", "-o", "json", file])

    record = json.loads(capsys.readouterr().out)
    assert code == 1
    assert record["valid"] is False
    assert record["errors"] == [
        {
            "path": "spec.tier",
            "found": '"realtime" (did you mean Realtime?)',
            "expected": "one of Realtime, Standard, Batch",
            "source": file,
            "line": 8,
            "subject": "InferenceService default/chat",
        }
    ]


def test_a_warning_alone_does_not_fail(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path, SERVICE + TENANT)

    code = run(["validate", file])

    out = capsys.readouterr().out
    assert code == 0
    assert (
        f"{file}:3: warning: InferenceService default/chat: metadata.namespace: expected a namespace of a Tenant" in out
    )
    assert out.endswith("no errors, 1 warning\n")


def test_standard_input_is_read_as_a_file(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    stream = io.TextIOWrapper(io.BytesIO(SERVICE.replace("hf:", "ftp:").encode()))
    monkeypatch.setattr("sys.stdin", stream)

    code = run(["validate", "-"])

    assert code == 1
    assert capsys.readouterr().out.startswith("<stdin>:7: error: ")


def test_without_files_the_usage_is_wrong(capsys: Any) -> None:
    assert run(["validate"]) == 2
    assert "FILE..." in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "no_color", "coloured"),
    [
        pytest.param(Terminal(), "", True, id="a terminal"),
        pytest.param(Terminal(), "1", False, id="a terminal whose user wants none"),
        pytest.param(io.StringIO(), "", False, id="a pipe"),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    stream: io.StringIO, no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")

    print_problems([Problem("spec", "a", "b", "f.yaml", 1)], "error", stream)

    assert ("\x1b[" in stream.getvalue()) is coloured
    assert "f.yaml:1: " in stream.getvalue()


SEEDED = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIGNS = "{}[]:,&*!|>'\"%@`#\t\n -?~<\x00\x1b\x85\r\ufeff\u2028\U0001f600"
DOCUMENTS = ("---\n", "...\n", "%YAML 1.1\n", "&a ", "*a", "<<: ", "!!", "!!binary ", "- ", "? ", "\r\n")
FIELDS_OF_OURS = ("apiVersion: windlass.dev/v1alpha1\n", "kind: Tenant\n", "metadata:\n", "  name: a\n", "spec:\n")
SCALARS = ("yes", "null", ".inf", "1e999", "0x1", "0b", "0o7", "1_0", "  namespaces: [a]\n")
YAML_TEXTS = st.lists(st.sampled_from([*SIGNS, *DOCUMENTS, *FIELDS_OF_OURS, *SCALARS]), max_size=40).map("".join)


@given(st.one_of(st.text(), YAML_TEXTS).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"a: " + b"{" * 500)
@example(b"? [a]\n: b\n")
@example(b'kind: "\\ud800"\n')
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_text_makes_it_raise(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(data)

    loaded = load_documents([file])

    assert loaded.problems or loaded.foreign or loaded.tenants
    for problem in loaded.problems:
        str(problem).encode()


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
SPEC_FIELDS = st.sampled_from(
    sorted({name for kind in KINDS for name in structural_schema(kind.model)["properties"]["spec"]["properties"]})
)


@given(
    st.sampled_from(["InferenceService", "Tenant", "GPUClass"]), JSON_VALUES, st.dictionaries(SPEC_FIELDS, JSON_VALUES)
)
@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_value_of_a_field_makes_it_raise(tmp_path: Path, kind: str, metadata: Any, spec: Any) -> None:
    file = tmp_path / "any.json"
    document = {"apiVersion": "windlass.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    file.write_text(json.dumps(document), encoding="utf-8")

    loaded = load_documents([file])

    assert loaded.problems, "none of these has a usable metadata.name and all required fields"
