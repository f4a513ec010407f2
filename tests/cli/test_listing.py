"""Lists on narrow screens: what people copy stays in one piece."""

import io
import sys

import pytest
from console_page import lines_of

from loco.cli.console import listing, show
from loco.contracts.figures import age

JOB = "20261128-181202-5c4c5b"
COLUMNS = ("job", "adapter", "owner", "status", "note", "age")


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("width", "owner"), [(80, False), (100, False), (120, True)])
def test_an_id_is_never_folded_and_what_is_spare_makes_room(
    monkeypatch: pytest.MonkeyPatch, width: int, *, owner: bool
) -> None:
    """At 80 columns every cell of `loco jobs` was folded, the ID into three lines."""
    screen = Screen()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    line = (JOB, "loans", "anna-of-the-library", "succeeded", "a word " * 9, "24 min")
    show(listing(COLUMNS, [line], right=("age",), whole=("job", "status", "age"), spare=("owner",)))
    said = lines_of(screen.getvalue())
    first = said[1].split()
    assert {JOB, "loans", "succeeded", "24", "min"} <= set(first)
    assert ("owner" in said[0].split()) is owner
    assert max(map(len, said)) <= width


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (8.9, "8 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (7300, "2 h"),
        (86400, "1 d"),
        (1e6, "11 d"),
    ],
)
def test_how_long_ago_has_one_unit(seconds: float, said: str) -> None:
    assert age(seconds) == said
