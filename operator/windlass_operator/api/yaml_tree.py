"""YAML and JSON text as a tree that remembers lines. Safe on hostile text.

Bounded in depth and in expanded size, plain data only.

Built from parser events rather than by `yaml.load`: every value keeps its line, duplicate keys are seen, documents
fail one by one, and an alias is counted for what it expands to. Scalars resolve as `kubectl` resolves them (YAML 1.1
booleans; dates stay text).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 100_000
"""Values of one document with aliases expanded; a fleet of thousands of services is thousands of documents."""

MAX_STREAM_VALUES: Final = 1_000_000
"""Values of all documents of a stream together, so that many small bombs are no better than a large one."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something wrong with the text itself."""

    line: int
    found: str
    expected: str


class UnreadableError(Exception):
    """The document cannot be read further; earlier and later documents can."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.found)
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Node:
    """One value. `size` counts it and everything below it, aliases expanded."""

    line: int
    size: int
    value: str | int | float | bool | list[Node] | dict[str, Entry] | None
    text: str = ""
    """A scalar as written."""

    def plain(self) -> Any:
        """Return the JSON value."""
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        return self.value


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping with its value."""

    line: int
    node: Node


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its tree, or None when unreadable, and every trouble with its text."""

    line: int
    root: Node | None
    troubles: tuple[Trouble, ...] = ()


def parse_documents(text: str) -> Iterator[Document]:
    """Yield the documents of a stream. Raises nothing; a document that cannot be read carries its trouble."""
    total = 0
    for first_line, chunk in _split(text):
        for document in _parse_chunk(chunk, first_line):
            total += document.root.size if document.root else 0
            if total > MAX_STREAM_VALUES:
                expected = f"at most {MAX_STREAM_VALUES} values in a file"
                yield Document(document.line, None, (Trouble(document.line, "more than that", expected),))
                return
            yield document


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Cut at `---` lines, which end a document wherever they stand: one bad document must not hide the others."""
    chunk: list[str] = []
    start, has_content = 0, False
    for number, line in enumerate(text.split("\n")):
        marker = _MARKER.match(line) is not None
        if marker and has_content:
            yield start, "\n".join(chunk) + "\n"
            chunk, start, has_content = [], number, False
        chunk.append(line)
        # Directives belong to the document after their marker, so they are no content of their own.
        words = line[3:].strip() if marker else line.strip()
        has_content = has_content or (bool(words) and not words.startswith(("#", "%")))
    if has_content:
        yield start, "\n".join(chunk) + "\n"


_MARKER: Final = re.compile(r"---(\s|$)")


def _parse_chunk(chunk: str, first_line: int) -> Iterator[Document]:
    composer = _Composer(chunk, first_line)
    try:
        for start_line, root in composer.documents():
            if not (root.value is None and root.text == ""):
                yield Document(start_line, root, tuple(composer.take_troubles()))
    except UnreadableError as exc:
        yield Document(exc.trouble.line, None, (*composer.take_troubles(), exc.trouble))
    except yaml.MarkedYAMLError as exc:
        trouble = _syntax_trouble(exc, chunk, first_line)
        yield Document(trouble.line, None, (*composer.take_troubles(), trouble))
    except yaml.reader.ReaderError as exc:
        line = first_line + 1 + chunk.count("\n", 0, exc.position if isinstance(exc.position, int) else 0)
        trouble = Trouble(
            _line_of_control_character(chunk, first_line, line), "a character that YAML forbids", "printable text"
        )
        yield Document(trouble.line, None, (trouble,))


_FORBIDDEN: Final = re.compile("[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _line_of_control_character(chunk: str, first_line: int, otherwise: int) -> int:
    match = _FORBIDDEN.search(chunk)
    return first_line + 1 + chunk.count("\n", 0, match.start()) if match else otherwise


def _syntax_trouble(exc: yaml.MarkedYAMLError, chunk: str, first_line: int) -> Trouble:
    mark = exc.problem_mark or exc.context_mark
    index = min(mark.line, chunk.count("\n") - 1) if mark else 0
    line = chunk.split("\n")[index]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return Trouble(first_line + index + 1, "a tab character", "spaces for indentation")
    words = " ".join(part for part in (exc.context, exc.problem) if part)
    return Trouble(first_line + index + 1, f"a syntax error: {words}", "YAML")


@dataclass(slots=True)
class _Composer:
    """Builds nodes from the events of one chunk; troubles that leave the rest readable are collected on the way."""

    chunk: str
    first_line: int
    anchors: dict[str, Node] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    events: Iterator[Any] = field(init=False)

    def documents(self) -> Iterator[tuple[int, Node]]:
        self.events = yaml.parse(self.chunk, Loader=_LOADER)
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.anchors = {}
                root = self._node(next(self.events), depth=0)
                yield root.line, root

    def take_troubles(self) -> list[Trouble]:
        taken, self.troubles = self.troubles, []
        return taken

    def _line(self, event: Any) -> int:
        return self.first_line + int(event.start_mark.line) + 1

    def _note(self, event: Any, found: str, expected: str) -> None:
        self.troubles.append(Trouble(self._line(event), found, expected))

    def _node(self, event: Any, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if depth > MAX_DEPTH:
            raise UnreadableError(
                Trouble(self._line(event), f"a document nested deeper than {MAX_DEPTH} levels", "fewer levels")
            )
        if (event.tag and not event.tag.startswith("tag:yaml.org,2002:")) or event.tag in _CODE_TAGS:
            self._note(event, f"the tag {event.tag}", "plain YAML without tags")
        elif event.tag and event.tag.startswith("tag:yaml.org,2002:python"):
            self._note(event, f"the tag {event.tag.removeprefix('tag:yaml.org,2002:')}", "plain YAML without tags")
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = self._mapping(event, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            raise UnreadableError(
                Trouble(self._line(event), f"the alias *{event.anchor}", "an anchor that is complete before its alias")
            )
        return self.anchors[event.anchor]

    def _sized(self, event: Any, size: int) -> int:
        if size > MAX_VALUES:
            raise UnreadableError(
                Trouble(
                    self._line(event),
                    "more than that with aliases expanded",
                    f"at most {MAX_VALUES} values in a document",
                )
            )
        return size

    def _scalar(self, event: Any) -> Node:
        value: Any = event.value
        if (event.implicit[0] and not event.tag) or event.tag in _RESOLVED_TAGS:
            value = resolve_plain(event.value)
        if isinstance(value, float) and not math.isfinite(value):
            self._note(event, f"number {event.value}", "a finite number")
            value = event.value
        return Node(self._line(event), 1, value, event.value)

    def _sequence(self, event: Any, depth: int) -> Node:
        items: list[Node] = []
        size = 1
        while not isinstance(below := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(below, depth + 1))
            size = self._sized(event, size + items[-1].size)
        return Node(self._line(event), size, items)

    def _mapping(self, event: Any, depth: int) -> Node:
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        size = 1
        while not isinstance(below := next(self.events), yaml.MappingEndEvent):
            key = self._node(below, depth + 1)
            node = self._node(next(self.events), depth + 1)
            size = self._sized(event, size + key.size + node.size)
            if key.text == "<<" and key.value == "<<":
                merged = {**self._merged(node), **merged}
                continue
            name = self._key(below, key)
            if name in entries:
                self._note(below, f'"{name}" again (first on line {entries[name].line})', "each key once")
            entries[name] = Entry(key.line, node)
        return Node(self._line(event), size, {**merged, **entries})

    def _key(self, event: Any, key: Node) -> str:
        if isinstance(key.value, str):
            return key.value
        if isinstance(key.value, list | dict):
            self._note(event, "a list or mapping as a key", "a key of text")
            return f"line {key.line}"
        self._note(event, f"{key.text or 'null'}, which YAML does not read as text", "a key of text; put it in quotes")
        return key.text

    def _merged(self, node: Node) -> dict[str, Entry]:
        sources = node.value if isinstance(node.value, list) else [node]
        merged: dict[str, Entry] = {}
        for source in reversed(sources):
            if isinstance(source.value, dict):
                merged |= source.value
            else:
                self.troubles.append(
                    Trouble(source.line, "something else after <<", "a mapping, or a list of them, to merge")
                )
        return merged


_CODE_TAGS: Final = (
    "tag:yaml.org,2002:binary",
    "tag:yaml.org,2002:set",
    "tag:yaml.org,2002:omap",
    "tag:yaml.org,2002:pairs",
)
_RESOLVED_TAGS: Final = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))

_WORDS: Final[dict[str, bool | None]] = {
    **{spelling: None for word in ("null",) for spelling in (word, word.title(), word.upper(), "~", "")},
    **{spelling: True for word in ("true", "yes", "on") for spelling in (word, word.title(), word.upper())},
    **{spelling: False for word in ("false", "no", "off") for spelling in (word, word.title(), word.upper())},
}
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_BASED: Final = re.compile(r"([-+]?)0(b[01_]+|x[0-9a-fA-F_]+|o?[0-7_]+)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
_MAX_DIGITS: Final = 40


def resolve_plain(text: str) -> str | int | float | bool | None:
    """Give an unquoted scalar its meaning."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _MAX_DIGITS or (not text[-1].isalnum() and text[-1] not in "._"):
        return text
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if match := _BASED.fullmatch(text):
        digits = match[2].replace("_", "")
        base = {"b": 2, "x": 16, "o": 8}.get(digits[:1], 8)
        value = int(digits[1 if digits[0] in "bxo" else 0 :] or "0", base)
        return -value if match[1] == "-" else value
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "", 1))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text
