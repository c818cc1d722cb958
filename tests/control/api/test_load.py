"""Files to objects: which files are read, what is kept, and where things were written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from windlass_operator.api import load
from windlass_operator.api.load import Loaded, load_documents
from windlass_operator.api.v1alpha1.inference_service import PrecisionPreset
from windlass_operator.api.v1alpha1.scaling import MetricType

TENANT = """\
apiVersion: windlass.dev/v1alpha1
kind: Tenant
metadata: {{name: {name}}}
spec: {{namespaces: [{name}]}}
"""


def write(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def names(loaded: Loaded) -> list[str]:
    return [tenant.metadata.name for tenant in loaded.tenants]


def said(loaded: Loaded) -> list[tuple[str, int, str, str]]:
    return [(Path(item.source).name, item.line, item.found, item.expected) for item in loaded.problems]


def test_a_service_becomes_a_frozen_object_with_defaults(tmp_path: Path) -> None:
    text = """\
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {uri: hf://org/name}
  scaling: {maxReplicas: 3}
"""
    (service,) = load_documents([write(tmp_path, "a.yaml", text)]).services

    assert (service.metadata.namespace, service.metadata.name) == ("default", "chat")
    assert service.spec.scaling is not None
    assert [metric.type for metric in service.spec.scaling.metrics] == [MetricType.QUEUE_DEPTH]
    assert service.spec.precision.preset is PrecisionPreset.AUTO
    with pytest.raises(ValueError, match="frozen"):
        service.spec.replicas = 2


def test_folders_are_read_recursively_in_a_stable_order(tmp_path: Path) -> None:
    for name, file in (("c", "z/c.yaml"), ("a", "a.yml"), ("b", "b.json")):
        write(tmp_path, file, TENANT.format(name=name).replace("'", '"'))
    write(tmp_path, "notes.txt", "not: read")

    assert names(load_documents([tmp_path])) == ["a", "b", "c"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", TENANT.format(name="a"))
    os.symlink(file, tmp_path / "b.yaml")

    loaded = load_documents([file, tmp_path, str(file)])

    assert names(loaded) == ["a"]
    assert loaded.problems == ()


def test_one_object_in_two_files_is_a_problem_that_names_both(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", TENANT.format(name="a"))
    write(tmp_path, "b.yaml", "\n\n" + TENANT.format(name="a"))

    assert said(load_documents([tmp_path])) == [("b.yaml", 5, f"it again (first in {first}:1)", "each object once")]


def test_one_name_in_two_namespaces_is_two_objects(tmp_path: Path) -> None:
    text = "apiVersion: windlass.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: chat, namespace: %s}\n"
    text += "spec: {model: {uri: hf://org/name}}\n"
    write(tmp_path, "a.yaml", text % "one" + "---\n" + text % "two")

    loaded = load_documents([tmp_path])

    assert [service.metadata.namespace for service in loaded.services] == ["one", "two"]


def test_an_absent_namespace_is_the_namespace_default(tmp_path: Path) -> None:
    text = "apiVersion: windlass.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: chat%s}\n"
    text += "spec: {model: {uri: hf://org/name}}\n"
    write(tmp_path, "a.yaml", text % "" + "---\n" + text % ", namespace: default")

    assert [item.expected for item in load_documents([tmp_path]).problems] == ["each object once"]


def test_documents_of_other_kinds_are_kept_as_they_are(tmp_path: Path) -> None:
    text = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: a}\nanything: [1, null]\n"

    loaded = load_documents([write(tmp_path, "a.yaml", text)])

    assert loaded.problems == ()
    assert [document["anything"] for document in loaded.foreign] == [[1, None]]


def test_objects_exported_from_a_cluster_are_fine(tmp_path: Path) -> None:
    text = """\
apiVersion: v1
kind: List
items:
- apiVersion: windlass.dev/v1alpha1
  kind: Tenant
  metadata:
    name: acme
    uid: 5d2
    resourceVersion: "7"
    generation: 3
    creationTimestamp: "2026-01-01T00:00:00Z"
    managedFields: [{manager: kubectl}]
    annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
  spec: {namespaces: [a]}
  status: {observedGeneration: 3, whatever: true}
"""
    loaded = load_documents([write(tmp_path, "a.yaml", text)])

    assert loaded.problems == ()
    assert loaded.tenants[0].status.observed_generation == 0


def test_a_source_knows_file_folder_and_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "sub/a.yaml",
        "# intro\n" + TENANT.format(name="a").replace("{namespaces: [a]}", "\n  namespaces:\n  - a"),
    )
    loaded = load_documents([file])

    source = loaded.source_of(loaded.tenants[0])

    assert (source.file, source.line, source.folder) == (str(file), 2, tmp_path / "sub")
    assert source.line_of("spec.namespaces[0]") == 7
    assert source.line_of("spec.namespaces[4]") == 6
    assert source.line_of("spec.quota.gpus[0].name") == 5
    assert source.line_of("nothing.like.it") == 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"\xef\xbb\xbf" + TENANT.format(name="a").encode(), id="byte order mark"),
        pytest.param(TENANT.format(name="a").replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param("\n\n---\n" + TENANT.format(name="a") + "---\n", id="empty documents around it"),
        pytest.param("%YAML 1.1\n---\n" + TENANT.format(name="a"), id="a directive"),
    ],
)
def test_harmless_forms_of_text_are_read(tmp_path: Path, text: str | bytes) -> None:
    loaded = load_documents([write(tmp_path, "a.yaml", text)])

    assert (names(loaded), loaded.problems) == (["a"], ())


def test_what_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    loaded = load_documents([tmp_path / "absent.yaml", tmp_path / "empty", "nul\0byte"])

    assert [(item.found, item.expected) for item in loaded.problems] == [
        ("no such file or directory", "a readable file or folder"),
        ("none", "a folder with .yaml, .yml or .json files"),
        ("embedded null byte", "a readable file or folder"),
    ]


def test_a_file_of_any_size_is_read_only_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_FILE_BYTES", 2**20)
    file = write(tmp_path, "a.yaml", b"#" * (2**20 + 1))

    loaded = load_documents([file, "/dev/zero"])

    assert [item.expected for item in loaded.problems] == ["a file of at most 1 MiB"] * 2


def test_problems_come_in_the_order_of_lines_over_all_documents(tmp_path: Path) -> None:
    text = TENANT.format(name="a").replace("[a]", "7") + "---\nx: [\n---\n" + TENANT.format(name="B")

    loaded = load_documents([write(tmp_path, "a.yaml", text)])

    assert [item.line for item in loaded.problems] == [4, 6, 10, 11]
    assert loaded.tenants == ()


def test_hundreds_of_services_load_quickly_enough_to_edit_by(tmp_path: Path) -> None:
    text = "".join(f"---\n{TENANT.format(name=f't{index}')}" for index in range(500))

    assert len(load_documents([write(tmp_path, "a.yaml", text)]).tenants) == 500
