"""docs/troubleshooting.md has a row for every error a user can meet, and names only what there is."""

import re
from pathlib import Path

import typer.main

from loco.cli.main import app
from loco.contracts.errors import LocoError, _subclasses

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()


def test_every_code_has_its_row_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", PAGE, re.MULTILINE))
    assert rows == {each.code: str(each.status) for each in _subclasses(LocoError)}


def test_every_command_exists() -> None:
    commands = getattr(typer.main.get_command(app), "commands", {})
    named = set(re.findall(r"`?(?:\$ )?\bloco ([a-z]+)", PAGE))
    assert named
    assert named - set(commands) == set()
