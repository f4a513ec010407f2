"""Text that takes over the terminal of whoever looks at a job.

A row, an answer or a library's message holds escape sequences: they cleared the screen of `loco
watch`, set its title, hid an error in red on red, and a line break forged a line "eval succeeded" in
a log. `[bold red]` in a worker's, profile's or model's name coloured tables, and `[/]` ended the
command with a traceback.
"""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from loco import Client
from loco.cli.console import note, show, show_error, show_json, stderr, table
from loco.cli.watch import follow
from loco.contracts.errors import NotFound
from loco.contracts.printable import json_printable, one_line, printable
from loco.contracts.stages import Stage

#: Title, clear screen, a link, a CSI of one byte (C1), reversed reading order, DEL.
ATTACK = "\x1b]0;owned\x07\x1b[2J\x1b]8;;http://evil\x1b\\x\x9b31m\u202egpj\x7f [bold red]a[/] [/]"
FORGED = "loss is NaN\neval      succeeded"


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey."""
    return [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]


def test_what_is_printed_is_written_out(capsys):
    rows = table("name", ATTACK)
    rows.add_row(ATTACK, "[bold red]a[/] [/]")
    show(rows, ATTACK)
    note(ATTACK)
    show_error(NotFound(ATTACK, hint=ATTACK))
    shown = capsys.readouterr()
    for text in shown:
        assert obeyed(text) == []
        assert "\u202e" not in text
        assert "\\x1b[2J" in text
        assert "[bold red]a[/] [/]" in text
    assert shown.err.count("\\x9b31m") == 3


def test_json_is_the_same_document_without_a_control(capsys):
    show_json({"message": ATTACK})
    text = capsys.readouterr().out
    assert obeyed(text) == []
    assert json.loads(text) == {"message": ATTACK}
    assert json_printable('"é\n"') == '"é\n"'


def test_ordinary_text_stays():
    text = "Die Antwort ist 42 → ½ 数学 😀\n\tend"
    assert printable(text) == text
    assert one_line("a\n\tb") == "a\\n\\tb"


@pytest.mark.redis
def test_a_hostile_job_on_a_terminal(live_api, hands):
    loco = Path(sys.executable).with_name("loco")
    with Client(live_api.url) as client:
        job = client.submit("math", profile="tiny")
        claim = hands.claim(Stage.PREPARE)
        environment = {**os.environ, "LOCO_SERVER": live_api.url, "TERM": "xterm"}
        screen, end = pty.openpty()
        process = subprocess.Popen(
            [loco, "watch", job.id], env=environment, stdin=end, stdout=end, stderr=end
        )
        os.close(end)
        seen, step = b"", 0
        with open(screen, "rb", buffering=0) as output, contextlib.suppress(OSError):
            while chunk := output.read(65536):  # OSError: the other end is closed
                seen += chunk
                if step == 0 and b"starting" in seen:
                    hands.ledger.log(claim.task_id, claim.token, ATTACK)
                    hands.progress(claim, percent=50, message=ATTACK)
                    step = 1
                elif step == 1 and seen.count(b"\\x1b]0;owned") >= 2:
                    hands.fail(claim, ATTACK, hint=ATTACK)
                    step = 2
        assert process.wait(60) == 1
    assert b"]0;owned" in seen
    for sequence in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e", "\x7f"):
        assert sequence.encode() not in seen
    assert b"\x1b[1;31mfailed" in seen  # our own colours are there


@pytest.mark.redis
def test_a_log_line_cannot_forge_another(live_api, hands, capsys):
    with Client(live_api.url) as client:
        job = client.submit("math", profile="tiny")
        claim = hands.claim(Stage.PREPARE)
        hands.ledger.log(claim.task_id, claim.token, FORGED)
        hands.fail(claim, ATTACK)
        follow(client, job.id, stderr())
    lines = capsys.readouterr().err.splitlines()
    assert f"prepare   {one_line(FORGED)}" in lines
    assert not any(line.startswith("eval ") for line in lines)
