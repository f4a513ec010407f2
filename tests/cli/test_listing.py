"""Lists at the widths of real terminals: what people copy is whole, what gives way is said."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner
from versions import Builder

from loco import Client
from loco.cli import console as consoles
from loco.cli.listing import Listing
from loco.cli.main import app
from loco.contracts.evaluation import Verdict

WIDTHS = [60, 80, 100, 120]
#: A folded or shortened ID is none.
JOB = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{6}\b")


def drawn(listing: Listing, width: int, *, terminal: bool = True) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False
    )
    console.print(listing, crop=False)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def listing() -> Listing:
    made = Listing("job", "note", "who", "age", right=("age",), spare=("who",), below="note")
    made.add_row("20261128-181330-7c4a6f", "a word", "somebody", "3 s")
    made.add_row("20261128-181254-8e8699", "so many words " * 4 + "end", "somebody else", "12 s")
    return made


def test_a_wide_terminal_has_a_line_a_row() -> None:
    lines = drawn(listing(), 120)
    assert len(lines) == 3
    assert lines[0].split() == ["job", "note", "who", "age"]


def test_what_is_too_long_goes_below_its_row_and_stays_whole() -> None:
    lines = drawn(listing(), 80)
    assert lines[:4] == [
        "job                     who             age",
        "  note",
        "20261128-181330-7c4a6f  somebody        3 s",
        "  a word",
    ]
    assert lines[4] == "20261128-181254-8e8699  somebody else  12 s"
    assert lines[5] == "  " + "so many words " * 4 + "end"


def test_what_is_left_out_is_said() -> None:
    lines = drawn(listing(), 40)
    assert lines[0] == "job                      age"
    assert lines[-1] == "Left out on so narrow a terminal: who."


def test_a_pipe_gets_everything_a_line_a_row() -> None:
    lines = drawn(listing(), 40, terminal=False)
    assert len(lines) == 3
    assert lines[2].endswith("end  somebody else  12 s")


def test_no_text_of_others_passes_for_a_row() -> None:
    made = Listing("name", "note")
    made.add_row("x", "one\nadmin  all is well\x1b[2J")
    assert drawn(made, 80)[1:] == ["x     one\\nadmin  all is well\\x1b[2J"]


@pytest.fixture
def at(live_api, monkeypatch):
    """Runs a command on a terminal so many columns wide; gives the lines it prints."""

    def run(width: int, *words: str) -> list[str]:
        def made(**_: Any) -> Console:
            return consoles.PlainConsole(width=width, force_terminal=True, color_system=None)

        monkeypatch.setattr(consoles, "_console", made)
        monkeypatch.setenv("LOCO_SERVER", live_api.url)
        told = CliRunner().invoke(app, list(words))
        assert told.exit_code == 0, told.output
        return [line.rstrip() for line in told.stdout.splitlines()]

    return run


@pytest.mark.redis
@pytest.mark.parametrize("width", WIDTHS)
def test_versions_jobs_and_the_trail_are_whole_at_any_width(
    at, live_api, ledger, spec, width: int
) -> None:
    build = Builder(ledger, spec)
    job = build.registered()
    build.measured(job, Verdict.BETTER)
    with Client(live_api.url) as client:
        asked = client.submit("math", profile="tiny", stages=["prepare"])
        client.cancel(asked.id)
    versions = at(width, "versions", "math")
    assert max(map(len, versions)) <= width
    assert "held_out 42 % → 57 %" in "\n".join(versions)
    assert "better" in "\n".join(versions)
    assert "age" not in versions[0].split() or width > 80
    jobs = at(width, "jobs")
    assert max(map(len, jobs)) <= width
    assert job.id in JOB.findall("\n".join(jobs))
    trail = "\n".join(at(width, "keys", "audit"))
    assert max(map(len, trail.splitlines())) <= width
    assert f"/jobs/{asked.id}/cancel" in trail
    assert {"local", "cancelJob", "submitJob"} <= set(trail.split())
    assert "…" not in "\n".join([*versions, *jobs, trail])
