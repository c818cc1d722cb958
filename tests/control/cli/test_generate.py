"""`windlass generate`: what it writes, that it is current in this repository, and how `--check` speaks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from windlass_operator.api.generate import render_crd, render_crd_template, render_files
from windlass_operator.api.kinds import KINDS, Kind
from windlass_operator.main import run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A tree with the types and examples, and nothing generated yet."""
    (tmp_path / "operator/windlass_operator/api").mkdir(parents=True)
    for folder in {Path(kind.example).parent for kind in KINDS}:
        shutil.copytree(ROOT / "examples" / folder, tmp_path / "examples" / folder)
    return tmp_path


def files_of(root: Path) -> dict[str, str]:
    folders = (root / "crds", root / "docs/reference", root / "helm/windlass-crds/templates")
    return {str(file.relative_to(root)): file.read_text() for folder in folders for file in folder.iterdir()}


def test_what_this_repository_holds_is_current(capsys: Any) -> None:
    code = run(["generate", "--check", "--root", str(ROOT)])

    assert (code, capsys.readouterr().err) == (0, "")


def test_it_writes_one_crd_one_template_and_one_page_per_kind(repository: Path, capsys: Any) -> None:
    assert run(["generate", "--root", str(repository)]) == 0

    assert sorted(files_of(repository)) == [
        "crds/batchinferences.yaml",
        "crds/gpuclasses.yaml",
        "crds/inferenceservices.yaml",
        "crds/tenants.yaml",
        "docs/reference/batchinference.md",
        "docs/reference/gpuclass.md",
        "docs/reference/inferenceservice.md",
        "docs/reference/tenant.md",
        "helm/windlass-crds/templates/batchinferences.yaml",
        "helm/windlass-crds/templates/gpuclasses.yaml",
        "helm/windlass-crds/templates/inferenceservices.yaml",
        "helm/windlass-crds/templates/tenants.yaml",
    ]
    assert capsys.readouterr().out == "12 files are current, 12 written\n"


def test_a_second_run_writes_nothing(repository: Path, capsys: Any) -> None:
    run(["generate", "--root", str(repository)])
    before = {name: (repository / name).stat().st_mtime_ns for name in files_of(repository)}

    run(["generate", "--root", str(repository)])

    assert capsys.readouterr().out.endswith("12 files are current, 0 written\n")
    assert {name: (repository / name).stat().st_mtime_ns for name in before} == before


def test_check_names_each_stale_or_missing_file_and_changes_none(repository: Path, capsys: Any) -> None:
    run(["generate", "--root", str(repository)])
    (repository / "crds/tenants.yaml").write_text("old")
    (repository / "docs/reference/gpuclass.md").unlink()
    capsys.readouterr()

    code = run(["generate", "--check", "--root", str(repository)])

    assert code == 1
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "crds/tenants.yaml",
        "docs/reference/gpuclass.md",
    ]
    assert (repository / "crds/tenants.yaml").read_text() == "old"


def test_the_root_is_searched_upwards(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "operator/windlass_operator")

    assert run(["generate"]) == 0
    assert (repository / "crds/tenants.yaml").exists()


def test_outside_a_repository_it_says_what_it_looked_for(tmp_path: Path, capsys: Any) -> None:
    assert run(["generate", "--root", str(tmp_path)]) == 1
    assert "expected a folder with operator/windlass_operator/api" in capsys.readouterr().err


def test_a_missing_example_is_named(repository: Path, capsys: Any) -> None:
    (repository / "examples/quickstart/tenant.yaml").unlink()

    assert run(["generate", "--root", str(repository)]) == 1
    assert "examples/quickstart/tenant.yaml: expected the example of the reference" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_text_of_a_crd_reads_back_as_the_crd(kind: Kind) -> None:
    text = render_files({kind.example: "" for kind in KINDS})[f"crds/{kind.plural}.yaml"]

    assert yaml.safe_load(text) == render_crd(kind)
    assert "&id" not in text
    assert "{{" not in text


def test_braces_of_a_crd_reach_the_cluster_as_they_are() -> None:
    crd = {"apiVersion": "v1", "kind": "C", "metadata": {"name": "c", "labels": {"a": "b"}}, "spec": {"a": "{{ b }}}}"}}

    template = render_crd_template(crd)

    assert template.endswith("""spec:\n  a: '{{ "{{" }} b {{ "}}" }}{{ "}}" }}'\n{{- end }}\n""")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_page_shows_every_field_rule_and_column_and_the_example(kind: Kind) -> None:
    example = (ROOT / "examples" / kind.example).read_text()
    page = render_files({kind.example: "" for kind in KINDS} | {kind.example: example})[
        f"docs/reference/{kind.name.lower()}.md"
    ]
    schema = render_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    for part in ("spec", "status"):
        for name in schema["properties"][part]["properties"]:
            assert f"`{part}.{name}`" in page
    for entry in schema["x-kubernetes-validations"]:
        assert entry["message"] in page
    for column in kind.columns:
        assert f"| {column.name} | `{column.json_path}`" in page
    assert example.rstrip() in page


def test_tables_of_a_page_have_as_many_cells_as_their_head() -> None:
    for page in (ROOT / "docs/reference").glob("*.md"):
        rows = [line.replace("\\|", "") for line in page.read_text().splitlines() if line.startswith("|")]
        width = 0
        for row in rows:
            if set(row) == {"|", "-"}:
                assert row.count("|") == width, page.name
            elif row.count("|") != width:
                width = row.count("|")
                assert rows[rows.index(row) + 1].startswith("|---"), f"{page.name}: {row}"
