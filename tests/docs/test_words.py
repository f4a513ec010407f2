"""Pages for users speak their words: internal ones stay in the pages about the architecture."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: architecture.md and glossary.md explain internal words, docs/adr/ weighs them, docs/reference/ is generated.
INSIDE = {"architecture.md", "glossary.md"}
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in INSIDE),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
#: To the word a reader would use.
WORDS = {
    r"ledger": "Redis, the server, the record",
    r"fencing tokens?": "(leave it out)",
    r"mend(?:ed|s|ing)?": "fix",
    r"go(?:es)? on (?:from|where|with|until)": "continue",
    r"taken over": "reused",
    r"anew": "again",
}


def internal(text: str) -> list[str]:
    """What a page's prose says that it should say otherwise."""
    prose = _CODE.sub("", text)
    return [
        f"{found.group(0)!r}: say {better}"
        for word, better in WORDS.items()
        for found in re.finditer(rf"\b{word}\b", prose, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_internal_words(page: Path) -> None:
    assert internal(page.read_text()) == []


def test_an_internal_word_is_found() -> None:
    text = (
        "The ledger has `the ledger`; it goes on where it was, and starts anew.\n```\nmend\n```\n"
    )
    assert len(internal(text)) == 3
