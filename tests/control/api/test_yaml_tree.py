"""Text to trees: meanings of scalars, lines, documents that fail alone, and bounds against hostile text."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_operator.api import yaml_tree
from windlass_operator.api.yaml_tree import parse_documents, resolve_plain


def plain(text: str) -> list[Any]:
    return [document.root.plain() if document.root else None for document in parse_documents(text)]


def troubles(text: str) -> list[tuple[int, str]]:
    return [(item.line, item.found) for document in parse_documents(text) for item in document.troubles]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        pytest.param("", None, id="empty"),
        pytest.param("~", None, id="tilde"),
        pytest.param("Null", None, id="null"),
        pytest.param("yes", True, id="yes is a boolean"),
        pytest.param("OFF", False, id="off is a boolean"),
        pytest.param("y", "y", id="y is text"),
        pytest.param("12", 12, id="integer"),
        pytest.param("-1_000", -1000, id="underscores"),
        pytest.param("0x1F", 31, id="hexadecimal"),
        pytest.param("0xb0", 176, id="hexadecimal beginning with b"),
        pytest.param("0755", 493, id="octal of YAML 1.1"),
        pytest.param("0o755", 493, id="octal of YAML 1.2"),
        pytest.param("-0b101", -5, id="binary"),
        pytest.param("0", 0, id="zero"),
        pytest.param("08", 8.0, id="no octal digit, read as decimal"),
        pytest.param("9.0", 9.0, id="fraction"),
        pytest.param(".5", 0.5, id="bare fraction"),
        pytest.param("1e3", 1000.0, id="exponent"),
        pytest.param("16Gi", "16Gi", id="quantity"),
        pytest.param("1.2.3", "1.2.3", id="version"),
        pytest.param("2026-01-01", "2026-01-01", id="dates stay text"),
        pytest.param("12:30", "12:30", id="times stay text"),
        pytest.param("9" * 5000, "9" * 5000, id="a number too long to be one"),
    ],
)
def test_unquoted_text_means_what_kubectl_reads(text: str, meaning: Any) -> None:
    assert resolve_plain(text) == meaning
    assert type(resolve_plain(text)) is type(meaning)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("a: 'yes'\n", {"a": "yes"}, id="quotes make text"),
        pytest.param("a: !!str 5\n", {"a": "5"}, id="a standard tag makes text"),
        pytest.param("a: !!int '5'\n", {"a": 5}, id="a standard tag makes a number"),
        pytest.param("a: |\n  x\n  y\n", {"a": "x\ny\n"}, id="block text"),
        pytest.param("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}, id="anchors"),
        pytest.param(
            "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}, id="merge"
        ),
        pytest.param("d:\n  <<: [{a: 1}, {a: 2, b: 2}]\n", {"d": {"a": 1, "b": 2}}, id="merge of a list, first wins"),
        pytest.param('{"a": [1, true, null, "\\u00e9"]}', {"a": [1, True, None, "é"]}, id="JSON"),
        pytest.param('{\n\t"a": 1\n}', {"a": 1}, id="JSON indented with tabs"),
    ],
)
def test_text_becomes_plain_values(text: str, value: Any) -> None:
    assert plain(text) == [value]
    assert troubles(text) == []


def test_every_value_knows_its_line() -> None:
    (document,) = parse_documents("# intro\na: 1\nb:\n  - x\n  - y:\n      z\n")

    assert document.root is not None
    root: Any = document.root.value
    assert (root["a"].line, root["b"].line) == (2, 3)
    second = root["b"].node.value[1]
    assert second.line == 5
    assert second.value["y"].node.line == 6


def test_lines_count_on_over_documents() -> None:
    lines = [
        document.line for document in parse_documents("---\na: 1\n---\n# only a comment\n---\nb: 2\n...\n---\nc: 3\n")
    ]

    assert lines == [2, 6, 9]


def test_an_unreadable_document_does_not_hide_the_others() -> None:
    text = "a: 1\n---\nb: [\n---\nc: 3\n"

    assert plain(text) == [{"a": 1}, None, {"c": 3}]
    assert [line for line, _ in troubles(text)] == [3]


def test_a_marker_inside_block_text_ends_the_document_as_yaml_says() -> None:
    assert plain("a: |\n  x\n---\nb: 1\n") == [{"a": "x\n"}, {"b": 1}]


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        pytest.param("a: 1\nb: 2\na: 3\n", 3, '"a" again (first on line 1)', id="duplicate key"),
        pytest.param("1: x\n", 1, "1, which YAML does not read as text", id="number as key"),
        pytest.param("? {a: b}\n: c\n", 1, "a list or mapping as a key", id="mapping as key"),
        pytest.param("a: !!python/name:os.system x\n", 1, "the tag python/name:os.system", id="tag that runs code"),
        pytest.param("a: !!binary eA==\n", 1, "the tag tag:yaml.org,2002:binary", id="binary"),
        pytest.param("a: .inf\n", 1, "number .inf", id="infinity"),
        pytest.param("a: &x [*x]\n", 1, "the alias *x", id="alias inside its anchor"),
        pytest.param("a:\n\t- b\n", 2, "a tab character", id="tab"),
    ],
)
def test_trouble_with_the_text_names_its_line(text: str, line: int, found: str) -> None:
    ((where, what),) = troubles(text)

    assert where == line
    assert found in what


def test_a_document_may_not_grow_by_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "MAX_VALUES", 25)

    assert plain("a: &a [1, 2, 3, 4, 5]\nb: [*a, *a]\n") != [None]
    assert plain("a: &a [1, 2, 3, 4, 5]\nb: [*a, *a, *a]\n") == [None]


def test_many_small_documents_may_not_add_up_to_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "MAX_STREAM_VALUES", 20)
    text = "---\na: [1, 2, 3, 4, 5]\n" * 10

    documents = list(parse_documents(text))

    assert [document.root is not None for document in documents] == [True, True, False]
    assert documents[-1].troubles[0].expected == "at most 20 values in a file"


def test_depth_is_bounded_before_the_stack_is() -> None:
    assert plain("[" * 64 + "]" * 64) != [None]
    assert plain("[" * 100_000) == [None]
