"""Links of the documents lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.documents import ROOT, anchors, links, pages, slug_of

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    broken = [
        f"{page.relative_to(ROOT)}:{line}: {target}: {problem}"
        for line, target in links(page.read_text())
        if (problem := problem_of(page, target))
    ]

    assert broken == []


def problem_of(page: Path, target: str) -> str:
    """What is wrong with a link; empty for a good one and for addresses elsewhere."""
    if target.startswith(("https://", "http://", "mailto:")):
        return ""
    path, _, anchor = target.partition("#")
    place = (page.parent / path).resolve() if path else page
    if not place.is_relative_to(ROOT):
        return "leads out of the project"
    if not place.exists():
        return "no such file"
    if anchor and anchor not in anchors(place.read_text()):
        return "no such heading"
    return ""


def test_no_page_links_to_a_copy_of_this_project_on_a_host() -> None:
    """Such links leave the version a reader looks at; relative ones stay in it."""
    own = "github.com/windlass/windlass/blob"

    found = [
        f"{name}:{line}" for name, page in PAGES.items() for line, target in links(page.read_text()) if own in target
    ]

    assert found == []


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        pytest.param("QuotaExceeded", "quotaexceeded", id="one word"),
        pytest.param("No leader", "no-leader", id="spaces"),
        pytest.param("`windlass up` and [links](x.md)", "windlass-up-and-links", id="markup"),
        pytest.param("Upgrade, rollback, uninstall", "upgrade-rollback-uninstall", id="punctuation"),
    ],
)
def test_anchors_are_the_ones_that_browsers_see(heading: str, anchor: str) -> None:
    assert slug_of(heading) == anchor


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "architecture.md"

    assert problem_of(page, "nowhere.md") == "no such file"
    assert problem_of(page, "../README.md#nowhere") == "no such heading"
    assert problem_of(page, "../../elsewhere") == "leads out of the project"
    assert problem_of(page, "#layers") == ""
