"""Read Markdown the way its readers' tools do: headings become anchors, console blocks become commands."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_FENCE: Final = re.compile(r"^(```+|~~~+)\s*(\w*)")
_LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\(\s*([^)\s]+)[^)]*\)")
_CODE: Final = re.compile(r"(`+).+?\1")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a page, and the language of the fenced block it is in; None outside."""

    number: int
    text: str
    language: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """What a reader types, its continuation lines joined."""

    page: Path
    line: int
    text: str
    heading: str
    """The heading it stands below."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"


def pages() -> list[Path]:
    """Every Markdown page of the project, those that are not committed yet too."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(ROOT / name for name in names if (ROOT / name).is_file())


def lines(text: str) -> Iterator[Line]:
    """Lines of a page; the fences themselves are left out."""
    fence, language = "", None
    for number, line in enumerate(text.splitlines(), 1):
        found = _FENCE.match(line.lstrip())
        if found and (not fence or line.strip() == fence):
            fence, language = ("", None) if fence else (found[1], found[2])
        else:
            yield Line(number, line, language)


def anchors(text: str) -> list[str]:
    """What links may name after `#`, in order: GitHub's form of each heading, and explicit ones."""
    found: list[str] = []
    seen: dict[str, int] = {}
    for line in lines(text):
        if line.language is not None:
            continue
        found += re.findall(r'<a (?:id|name)="([^"]+)"', line.text)
        if heading := re.match(r"#{1,6} +(.*)", line.text):
            slug = slug_of(heading[1])
            count = seen.get(slug, 0)
            seen[slug] = count + 1
            found.append(f"{slug}-{count}" if count else slug)
    return found


def slug_of(heading: str) -> str:
    """GitHub's anchor of a heading."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().rstrip("#").strip())
    return re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line and target of every inline link outside code."""
    for line in lines(text):
        if line.language is None:
            for target in _LINK.findall(_CODE.sub("", line.text)):
                yield line.number, target


def commands(page: Path) -> Iterator[Command]:
    """Every command of the page's console blocks: lines that begin with `$ `."""
    begun, parts, heading = 0, [], ""
    for line in lines(page.read_text()):
        if line.language is None and (found := re.match(r"#{1,6} +(.*)", line.text)):
            heading = found[1].strip()
        if parts or (line.language == "console" and line.text.startswith("$ ")):
            begun = begun if parts else line.number
            parts.append(line.text.removeprefix("$ ").removesuffix("\\").strip())
            if not line.text.endswith("\\"):
                yield Command(page, begun, " ".join(parts), heading)
                parts = []


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or higher. Raises KeyError."""
    level, found, kept = 0, False, []
    for line in text.splitlines():
        match = re.match(r"(#{1,6}) +(.*)", line)
        if match and found and len(match[1]) <= level:
            break
        if found:
            kept.append(line)
        elif match and match[2].strip() == heading:
            level, found = len(match[1]), True
    if not found:
        raise KeyError(heading)
    return "\n".join(kept)


def table_rows(text: str) -> list[list[str]]:
    """Cells of every table row but the head."""
    rows, head = [], True
    for line in text.splitlines():
        if not line.startswith("|"):
            head = True
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if set("".join(cells)) <= set("-: "):
            head = False
        elif not head:
            rows.append(cells)
    return rows
