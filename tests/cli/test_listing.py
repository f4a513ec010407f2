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
from loco.cli.artifacts import _listing
from loco.cli.listing import Listing
from loco.cli.main import app
from loco.contracts.artifacts import Artifact
from loco.contracts.evaluation import Verdict
from loco.contracts.stages import Stage

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


@pytest.mark.parametrize("width", WIDTHS)
def test_a_file_of_a_job_is_one_line_at_any_width(width: int) -> None:
    found = [
        Artifact(
            name=name,
            stage=Stage.EXPORT,
            path=f"desk/{name}",
            size=9,
            sha256="a" * 64,
            media_type="text/plain",
        )
        for name in ("gguf/unsloth.Q4_K_M.gguf", "Modelfile")
    ]
    lines = drawn(_listing(found), width)
    assert lines[1].split()[0] == "export/gguf/unsloth.Q4_K_M.gguf"
    assert lines[2].split()[0] == "export/Modelfile"
    whole = ["a" * 64 in line for line in lines[1:3]]
    assert whole == [width == 120] * 2
    assert ("Left out" in lines[-1]) == (width < 120)
