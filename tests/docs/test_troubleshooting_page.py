"""docs/troubleshooting.md has a row for every error a user can meet, and names and quotes only what there is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from loco.cli.main import app
from loco.contracts.errors import LocoError, _subclasses

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
#: In the page, and for what a program fills in.
GAP = "…"


def messages() -> Iterator[str]:
    """The strings of the code that are no docstrings, with `GAP` for what an f-string fills in."""
    for room in ("shared/loco", "services"):
        for path in (ROOT / room).rglob("*.py"):
            yield from _strings(ast.parse(path.read_text()))


def _strings(tree: ast.Module) -> Iterator[str]:
    seen = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            seen.update(node.values)
            yield "".join(p.value if isinstance(p, ast.Constant) else GAP for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in seen:
            yield node.value


def quoted(page: str) -> list[str]:
    """What the first column of "What you see" shows as a program's own words."""
    _, _, seen = page.partition("## What you see")
    rows = re.findall(r"^\| (.*?) \|", seen.partition("\n## ")[0], re.MULTILINE)
    return [words for row in rows for words in re.findall(r"`([^`]+)`", row)]


def unsaid(quotes: list[str]) -> list[str]:
    """The quotes that no string of the code holds, gaps where the page has them."""
    left = {words: re.compile(".*".join(map(re.escape, words.split(GAP)))) for words in quotes}
    for said in messages():
        left = {words: pattern for words, pattern in left.items() if not pattern.search(said)}
    return list(left)


def test_every_message_is_what_a_program_says() -> None:
    found = quoted(PAGE)
    assert len(found) > 15
    assert unsaid(found) == []


@pytest.mark.parametrize(
    "words", ["No locollm API answers at …", "This is the client alone", "No response from …"]
)
def test_a_message_that_nothing_says_is_found(words: str) -> None:
    page = f"## What you see\n\n| you see | why |\n|---|---|\n| `{words}` | it |\n| x | y |\n"
    assert unsaid(quoted(page)) == [words]


def test_a_laptop_is_told_only_commands_that_its_client_has() -> None:
    _, _, laptop = PAGE.partition("**At a laptop**")
    block = re.findall(r"^\$ loco (\w+)", laptop.partition("## What you see")[0], re.MULTILINE)
    assert {"workers", "job", "logs"} <= set(block)
    assert not {"doctor", "up", "setup", "keys"} & set(block)


def test_every_code_has_its_row_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", PAGE, re.MULTILINE))
    assert rows == {each.code: str(each.status) for each in _subclasses(LocoError)}


def test_every_command_exists() -> None:
    commands = getattr(typer.main.get_command(app), "commands", {})
    named = set(re.findall(r"`?(?:\$ )?\bloco ([a-z]+)", PAGE))
    assert named
    assert named - set(commands) == set()
