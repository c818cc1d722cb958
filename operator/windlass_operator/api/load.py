"""Read files into frozen objects, with every problem of every document. Shared by validate, render, explain and up.

Nothing here raises on content: what cannot be used becomes a Problem that names file, line, object, field, finding
and expectation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import pydantic

from windlass_operator.api.check import Finding, check, did_you_mean, printable, show, show_path
from windlass_operator.api.check import Path as FieldPath
from windlass_operator.api.cross_check import cross_check
from windlass_operator.api.kinds import KIND_BY_NAME, Kind
from windlass_operator.api.loaded import STDIN_NAME, Identity, Loaded, Source, identity_of
from windlass_operator.api.meta import API_VERSION, GROUP, VERSION, ApiModel
from windlass_operator.api.metadata import document_schema
from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.api.yaml_tree import Document, Entry, Node, parse_documents
from windlass_operator.errors import Problem

__all__ = ["Identity", "Loaded", "Source", "identity_of", "load_documents"]

MAX_FILE_BYTES: Final = 8 * 2**20
SUFFIXES: Final = (".yaml", ".yml", ".json")
STDIN: Final = "-"


def load_documents(paths: Iterable[str | Path]) -> Loaded:
    """Read files, directories (recursively: .yaml, .yml, .json) and `-` for standard input. Never raises on content."""
    reading = _Reading()
    for path in paths:
        reading.read(str(path))
    return cross_check(reading.loaded())


@dataclass(slots=True)
class _Reading:
    """Collects objects and problems over all files."""

    objects: dict[Identity, ApiModel] = field(default_factory=dict)
    sources: dict[Identity, Source] = field(default_factory=dict)
    foreign: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    def loaded(self) -> Loaded:
        kept = self.objects.values()
        return Loaded(
            services=tuple(item for item in kept if isinstance(item, InferenceService)),
            tenants=tuple(item for item in kept if isinstance(item, Tenant)),
            gpu_classes=tuple(item for item in kept if isinstance(item, GPUClass)),
            batches=tuple(item for item in kept if isinstance(item, BatchInference)),
            foreign=tuple(self.foreign),
            problems=tuple(self.problems),
            sources=self.sources,
        )

    def read(self, path: str) -> None:
        if path == STDIN:
            self._read_stream(STDIN_NAME, sys.stdin.buffer)
        elif os.path.isdir(path):
            self._read_folder(path)
        else:
            self._read_file(path)

    def _read_folder(self, folder: str) -> None:
        files = sorted(str(file) for file in Path(folder).rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            self._problem(folder, 0, "none", "a folder with .yaml, .yml or .json files")
        for file in files:
            self._read_file(file)

    def _read_file(self, file: str) -> None:
        try:
            real = os.path.realpath(file)
            if real in self.files:
                return  # named twice, or inside a folder that is named too
            self.files.add(real)
            with open(file, "rb") as stream:
                self._read_stream(file, stream)
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            self._problem(file, 0, reason.lower(), "a readable file or folder")

    def _read_stream(self, name: str, stream: BinaryIO) -> None:
        data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            self._problem(name, 0, "more", f"a file of at most {MAX_FILE_BYTES // 2**20} MiB")
            return
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            line = 1 + data.count(b"\n", 0, exc.start)
            self._problem(name, line, f"the byte 0x{data[exc.start]:02x}", "UTF-8 text")
            return
        self._read_text(name, text.replace("\r\n", "\n"))

    def _read_text(self, name: str, text: str) -> None:
        found_any = False
        for document in parse_documents(text):
            found_any = True
            subject = _subject_of(document)
            self.problems += [
                Problem("", printable(item.found), item.expected, name, item.line, subject)
                for item in document.troubles
            ]
            if document.root is not None:
                self._read_document(name, document.root, sound=not document.troubles)
        if not found_any:
            found = "nothing but blank lines and comments" if text.strip() else "an empty file"
            self._problem(name, 1, found, "at least one document")

    def _read_document(self, name: str, root: Node, sound: bool) -> None:
        if isinstance(root.value, dict) and _text_at(root, "kind") == "List" and _text_at(root, "apiVersion") == "v1":
            items = root.value.get("items")
            for item in items.node.value if items and isinstance(items.node.value, list) else []:
                self._read_document(name, item, sound)
            return
        value = root.plain()
        kind, findings = identify(value)
        if kind is None and not findings:
            self.foreign.append(value)
            return
        subject = _subject(value, kind)
        if kind is not None:
            findings += _check_document(kind, value)
        for finding in sorted(findings, key=lambda item: _line_of(root, item.path)):
            self.problems.append(_to_problem(finding, root, name, subject))
        if kind is not None and not findings and sound:
            self._keep(kind, value, Source(name, root.line, _lines(root)), subject)

    def _keep(self, kind: Kind, value: dict[str, Any], source: Source, subject: str) -> None:
        metadata = value["metadata"]
        namespace = metadata.get("namespace", "default") if kind.namespaced else ""
        identity = (kind.name, namespace, metadata["name"])
        if identity in self.sources:
            first = self.sources[identity]
            found = f"it again (first in {first.file}:{first.line})"
            self.problems.append(
                Problem(
                    "metadata.name", found, "each object once", source.file, source.line_of("metadata.name"), subject
                )
            )
            return
        try:
            parsed = kind.model.model_validate(
                {**value, "metadata": {**metadata, "namespace": namespace}, "status": {}}
            )
        except pydantic.ValidationError as exc:
            self.problems += [
                Problem(
                    ".".join(map(str, error["loc"])),
                    show(error.get("input")),
                    error["msg"],
                    source.file,
                    source.line,
                    subject,
                )
                for error in exc.errors()
            ]
            return
        self.objects[identity] = parsed
        self.sources[identity] = source

    def _problem(self, file: str, line: int, found: str, expected: str) -> None:
        self.problems.append(Problem(path="", found=found, expected=expected, source=file, line=line))


def identify(value: Any) -> tuple[Kind | None, list[Finding]]:
    """Tell which of our kinds a document is. No kind and no findings: somebody else's document."""
    if not isinstance(value, dict):
        return None, [Finding((), show(value), "a mapping with apiVersion, kind, metadata and spec")]
    api_version, kind_name = value.get("apiVersion"), value.get("kind")
    findings = [
        Finding((key,), "nothing" if value.get(key) is None else show(value[key]), expected)
        for key, expected in (
            ("apiVersion", f'text such as "{API_VERSION}"'),
            ("kind", "text such as " + " or ".join(KIND_BY_NAME)),
        )
        if not isinstance(value.get(key), str) or not value[key]
    ]
    if findings:
        return (KIND_BY_NAME.get(kind_name) if isinstance(kind_name, str) else None), findings
    assert isinstance(api_version, str)
    assert isinstance(kind_name, str)
    kind = KIND_BY_NAME.get(kind_name)
    group, _, _version = api_version.rpartition("/")
    if group == GROUP or did_you_mean(group, [GROUP]) or (kind is not None and not group):
        if api_version != API_VERSION:
            hint = f" (the only version of {GROUP} is {VERSION})" if group == GROUP else did_you_mean(group, [GROUP])
            findings.append(Finding(("apiVersion",), show(api_version) + hint, API_VERSION))
        if kind is None:
            findings.append(
                Finding(
                    ("kind",),
                    show(kind_name) + did_you_mean(kind_name, KIND_BY_NAME),
                    "one of " + ", ".join(KIND_BY_NAME),
                )
            )
        return kind, findings
    return None, findings


def _check_document(kind: Kind, value: dict[str, Any]) -> list[Finding]:
    # identify() has judged the first two; the API server ignores status here, so exported objects with one are fine.
    desired = {name: item for name, item in value.items() if name not in ("apiVersion", "kind", "status")}
    findings = check(document_schema(kind), desired)
    metadata = value.get("metadata")
    if not kind.namespaced and isinstance(metadata, dict) and "namespace" in metadata:
        findings.append(
            Finding(
                ("metadata", "namespace"),
                show(metadata["namespace"]),
                f"no namespace, because {kind.name} is cluster-scoped",
            )
        )
    # Rules of the root may look at nothing but metadata.name, and CEL allows them no path to it.
    return [replace(finding, path=finding.path or ("metadata", "name")) for finding in findings]


def _line_of(root: Node, path: FieldPath) -> int:
    """Line of the field, or of its nearest ancestor that was written."""
    line, node = root.line, root
    for step in path:
        if isinstance(node.value, dict) and step in node.value:
            entry = node.value[str(step)]
            line, node = entry.line, entry.node
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.line
        else:
            break
    return line


def _lines(root: Node) -> dict[str, int]:
    """Line of every field, by its path."""
    lines: dict[str, int] = {}
    waiting: list[tuple[FieldPath, Node]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        below = (
            node.value.items()
            if isinstance(node.value, dict)
            else enumerate(node.value if isinstance(node.value, list) else ())
        )
        for step, child in below:
            lines[show_path((*path, step))] = child.line
            waiting.append(((*path, step), child.node if isinstance(child, Entry) else child))
    return lines


def _node_at(root: Node, path: FieldPath) -> Node | None:
    node = root
    for step in path:
        if isinstance(node.value, dict) and step in node.value:
            node = node.value[str(step)].node
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        else:
            return None
    return node


def _to_problem(finding: Finding, root: Node, file: str, subject: str) -> Problem:
    return Problem(
        show_path(finding.path),
        finding.found + _as_written(_node_at(root, finding.path)),
        finding.expected,
        file,
        _line_of(root, finding.path),
        subject,
    )


def _as_written(node: Node | None) -> str:
    """Say how a scalar was written where YAML reads something else into it: `on`, `0x10`, an empty value."""
    if node is None or isinstance(node.value, str | list | dict):
        return ""
    if node.text in ("", "true", "false", "null") or node.text == str(node.value):
        return ""
    return f" (written {show(node.text)[1:-1]})"


def _text_at(root: Node, key: str) -> str:
    entry = root.value.get(key) if isinstance(root.value, dict) else None
    return entry.node.value if entry and isinstance(entry.node.value, str) else ""


def _subject_of(document: Document) -> str:
    if document.root is None or not isinstance(document.root.value, dict):
        return ""
    value = document.root.plain()
    return _subject(value, KIND_BY_NAME.get(value.get("kind")) if isinstance(value.get("kind"), str) else None)


def _subject(value: Any, kind: Kind | None) -> str:
    """Name the object as far as its document allows."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return ""
    metadata = value.get("metadata") if isinstance(value.get("metadata"), dict) else {}
    name, namespace = (metadata or {}).get("name"), (metadata or {}).get("namespace", "default")
    words = show(value["kind"])[1:-1]
    if not isinstance(name, str) or not name:
        return words
    prefix = f"{show(namespace)[1:-1]}/" if kind and kind.namespaced and isinstance(namespace, str) else ""
    return f"{words} {prefix}{show(name)[1:-1]}"
