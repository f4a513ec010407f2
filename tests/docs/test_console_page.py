"""A page of commands: what is run, what is refused, and what counts as the promised output."""

from pathlib import Path

import pytest
from console_page import PageError, lines_of, missing, read

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"

PAGE = """\
Run `loco up`, then `loco submit`.

```console stays
$ source env
$ loco up
… ready …
```

```console
$ loco submit units --wait
Verdict: better. …
…
```

```csv
question,answer
```

```console not run: a GPU
$ loco submit big
```
"""


def test_commands_stand_in_order_with_what_they_promise() -> None:
    page = read(PAGE)
    assert [(c.text, c.stays) for c in page.commands] == [
        ("source env", False),
        ("loco up", True),
        ("loco submit units --wait", False),
    ]
    assert [c.text for c in page.not_run] == ["loco submit big"]
    assert page.commands[2].promised == ["Verdict: better. …", "…"]


@pytest.mark.parametrize(
    ("added", "why"),
    [
        ("```bash\nloco jobs\n```\n", "a block of kind 'bash'"),
        ("```\nls\n```\n", "a block of kind ''"),
        ("```csv\n$ loco jobs\n```\n", "a command outside a console block"),
        ("```yaml\nloco jobs\n```\n", "a command outside a console block"),
        ("~~~sh\nloco jobs\n~~~\n", "a block of kind 'sh'"),
        ("  ```console not run: too slow\n$ loco jobs\n```\n", "neither 'stays' nor a need"),
        ("```console sometimes\n$ loco jobs\n```\n", "neither 'stays' nor a need"),
        ("```console\nno command\n```\n", "output before a command"),
        ("```console\n```\n", "without a command"),
        ("```console\n$ ls\n… a …\n```\n", "promises nothing"),
        ("```console\n$ ls\n", "a block that does not end"),
        ("Then type `loco rollback units`.\n", "`loco rollback units` is in no console block"),
        ("Then type `$ ls`.\n", "is in no console block"),
        ("text\n\n    loco rollback units\n", "a command outside a console block"),
        ("```console not run: Ollama\n$ a\n$ b\n```\n", "more than 2 commands"),
    ],
)
def test_a_command_that_nobody_would_run_fails(added: str, why: str) -> None:
    with pytest.raises(PageError, match=why.replace("$", r"\$")):
        read(PAGE + "\n" + added)


def test_promised_lines_are_whole_lines_in_order() -> None:
    said = ["job   units", "held out  0/20", "Verdict: better. It won.", ""]
    assert missing(["job units", "…", "Verdict: better. …"], said) is None
    assert missing(["Verdict: better. …", "job units"], said) == "job units"
    assert missing(["Verdict: better."], said) == "Verdict: better."
    assert missing(["held out …/20", "held out …/20"], said) == "held out …/20"
    assert missing(["held … out … 0/20 …", "… Verdict: … won. …"], said) is None
    assert missing(["… held 0/20 …"], said) == "… held 0/20 …"
    assert missing(["held.out 0/20"], said) == "held.out 0/20"


def test_what_a_terminal_was_told_is_read_without_colours_and_moves() -> None:
    told = "\x1b[?25l\x1b[1;32mok\x1b[0m  \r\n\x1b[2K\x1b]0;title\x07next\rover"
    assert lines_of(told) == ["ok", "next", "over"]


def test_the_tutorial_shows_nothing_that_its_test_would_not_run() -> None:
    page = read(TUTORIAL.read_text(encoding="utf-8"))
    typed = [command.text for command in page.commands]
    for needed in ("loco new", "loco check", "loco adapters push", "loco submit", "loco chat"):
        assert any(text.startswith(f"{needed} ") for text in typed), needed
    promised = [line for command in page.commands for line in command.promised]
    assert any(line.startswith("Verdict: better.") for line in promised)
    assert [command.text for command in page.commands if command.stays] == ["loco up"]
