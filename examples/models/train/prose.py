"""Turn documentation markup into running prose: reStructuredText, Go doc comments and service descriptions in JSON.

Every reader yields sections, a heading with its paragraphs. What is not prose (code, tables, option lists) is dropped.
"""

import gzip
import html
import json
import re
from collections.abc import Iterator

Section = tuple[str, list[str]]

_UNDERLINE = re.compile(r"^([=\-~^\"'`#*+.:_])\1{2,}\s*$")
_SENTENCE_END = re.compile(r"[.!?:][\"')]?$")
_RST_INLINE = [
    (re.compile(r":[\w:+-]+:`~?!?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"\1"),  # :role:`text <target>`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),  # `text <address>`_
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"\[#?\w+\]_"), ""),
]
_LIST_MARK = re.compile(r"^\s*(?:[-*+•]|#\.|\d{1,2}[.)])\s+")
_HTML_BLOCK = re.compile(r"</?(?:p|ul|ol|li|dl|dt|dd|note|important|h\d|br|div|table|tr|td)\b[^>]*>")
_HTML_TAG = re.compile(r"<[^>]+>")
_GO_DECLARATION = re.compile(
    r"^(?:type|func(?:\s+\([^)]*\))?|const|var)\s+(\w+)"  # a declaration
    r"|^\t(?!var |const |return |if |for |func )(\w+)\s+[\w*\[\].]+(?:\s+`.*)?$"  # a field
)
_GO_PACKAGE = re.compile(r"^package\s+(\w+)")
_GO_SKIPPED = re.compile(r"^(?:\+|TODO|FIXME|XXX|nolint|go:|Deprecated|Copyright|Licensed under|-{3,}|={3,})")


def is_prose(paragraph: str) -> bool:
    """Whole sentences of mostly letters; rejects option lists, code and tables."""
    if not 40 <= len(paragraph) <= 2000 or not _SENTENCE_END.search(paragraph):
        return False
    letters = sum(char.isalpha() or char == " " for char in paragraph)
    words = paragraph.split()
    return (
        letters >= 0.88 * len(paragraph)
        and len(words) >= 8
        and max(map(len, words)) <= 48
        and paragraph.isascii()
        and paragraph[0].isalnum()
    )


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("’", "'").replace("“", '"').replace("”", '"').replace("–", "-")).strip()


def _clean_rst(block: list[str]) -> str:
    text = " ".join(line.strip() for line in block)
    for pattern, replacement in _RST_INLINE:
        text = pattern.sub(replacement, text)
    text = _LIST_MARK.sub("", text)
    return _squeeze(re.sub(r"::$", ":", text))


def read_rst(text: str) -> Iterator[Section]:
    """Sections of a reStructuredText file; literal blocks and directive options fall out as non-prose."""
    heading, paragraphs = "", list[str]()
    literal_indent = -1
    for block in re.split(r"\n\s*\n", text.expandtabs(4)):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = len(lines[0]) - len(lines[0].lstrip())
        if literal_indent >= 0 and indent > literal_indent:
            continue
        literal_indent = -1
        title = _rst_title(lines)
        if title is not None:
            if paragraphs:
                yield heading, paragraphs
            heading, paragraphs = title, []
            continue
        if lines[0].lstrip().startswith(".."):
            opener = lines[0].lstrip()
            if "::" in opener and not re.match(r"\.\. (?:note|warning|tip|important|seealso|attention)::", opener):
                literal_indent = indent if re.match(r"\.\. (?:code|literal|table|list-table|csv)", opener) else -1
                continue
            lines = [line for line in lines[1:] if not line.lstrip().startswith(":")]
        for item in _rst_items(lines):
            paragraph = _clean_rst(item)
            if is_prose(paragraph):
                paragraphs.append(paragraph)
        if lines and lines[-1].rstrip().endswith("::"):
            literal_indent = indent
    if paragraphs:
        yield heading, paragraphs


def _rst_title(lines: list[str]) -> str | None:
    bare = [line for line in lines if not _UNDERLINE.match(line)]
    if len(lines) >= 2 and len(bare) == 1 and _UNDERLINE.match(lines[-1]):
        title = _clean_rst(bare)
        return title if re.fullmatch(r"[\w ,.'()/:&-]{3,80}", title) else ""
    return None


def _rst_items(lines: list[str]) -> Iterator[list[str]]:
    item: list[str] = []
    for line in lines:
        if _LIST_MARK.match(line) and item:
            yield item
            item = []
        item.append(line)
    if item:
        yield item


def read_go_comments(text: str) -> Iterator[Section]:
    """Doc comments of a Go file. A type opens a section named after it, its fields' comments follow."""
    heading, paragraphs = "", list[str]()
    comment: list[str] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith("//"):
            comment.append(stripped[2:].strip() if not stripped.startswith("//\t") else "")
            continue
        declared = _GO_DECLARATION.match(line) or _GO_PACKAGE.match(line)
        if comment and declared:
            name = next(group for group in declared.groups() if group)
            found = [paragraph for paragraph in _go_paragraphs(comment) if is_prose(paragraph)]
            if found and not line[0].isspace():
                if paragraphs:
                    yield heading, paragraphs
                heading, paragraphs = (f"package {name}" if line.startswith("package") else name), []
            paragraphs += [_with_name(paragraph, name) if n == 0 else paragraph for n, paragraph in enumerate(found)]
        comment = []
    if paragraphs:
        yield heading, paragraphs


def _with_name(paragraph: str, name: str) -> str:
    return paragraph if name.lower() in paragraph.lower()[:80] else f"{name}: {paragraph}"


def _go_paragraphs(comment: list[str]) -> Iterator[str]:
    lines: list[str] = []
    for line in [*comment, ""]:
        if not line or _GO_SKIPPED.match(line):
            if lines:
                yield _squeeze(" ".join(lines).replace("`", ""))
            lines = []
            continue
        if _LIST_MARK.match(line) and lines:
            yield _squeeze(" ".join(lines).replace("`", ""))
            lines = []
        lines.append(_LIST_MARK.sub("", line))


def read_service_model(data: bytes) -> Iterator[Section]:
    """Sections of one botocore service description: the service, its operations, and its shapes with their members."""
    model = json.loads(gzip.decompress(data))
    title = model["metadata"].get("serviceFullName", model["metadata"]["serviceId"])
    yield title, _html_paragraphs(model.get("documentation", ""))
    for name, operation in model["operations"].items():
        yield _words(name), _html_paragraphs(operation.get("documentation", ""))
    for name, shape in model["shapes"].items():
        paragraphs = _html_paragraphs(shape.get("documentation", ""))
        for member, body in shape.get("members", {}).items():
            found = _html_paragraphs(body.get("documentation", ""))
            paragraphs += [_with_name(paragraph, member) if n == 0 else paragraph for n, paragraph in enumerate(found)]
        yield _words(name), paragraphs


def _words(camel: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", camel)


def _html_paragraphs(markup: str) -> list[str]:
    blocks = (_squeeze(html.unescape(_HTML_TAG.sub("", block))) for block in _HTML_BLOCK.split(markup))
    return [block for block in blocks if is_prose(block)]
