"""Links between the pages lead to files, and to headings in them, that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub writes them behind `#`."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def dead(text: str, page: Path) -> list[str]:
    """Links of a page's text that lead nowhere."""
    found = []
    for path, anchor in _LINK.findall(_FENCED.sub("", text)):
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(f"{path}#{anchor}" if anchor else path)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert dead(page.read_text(), page) == []


def test_a_dead_link_is_found() -> None:
    page = ROOT / "docs" / "api.md"
    text = "[a](nowhere.md) [b](recipes.md#no-such) [c](#keys) [d](recipes.md#train) [e](#none)"
    assert dead(text, page) == ["nowhere.md", "recipes.md#no-such", "#none"]
