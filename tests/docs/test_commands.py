"""Every `loco …` line that README and the docs show is one that the real command line takes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from loco.cli.main import app, global_options_first
from loco.cli.overrides import parse_assignments, parse_grid
from loco.contracts.errors import LocoError
from loco.contracts.requests import JobRequest
from loco.recipes.resolve import adapter_names, resolve

ROOT = Path(__file__).parents[2]
ADAPTERS = ROOT / "adapters"
#: docs/reference/ is written from the command line itself, docs/adr/ tells what once was.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HOW_TOS = sorted((ROOT / "docs" / "howto").glob("*.md"))

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELLS = {"", "console", "bash", "sh"}
_INDENTED = re.compile(r"^ {4}(?=\S)(.*)$", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`(?:\$ )?(loco [^`]+)`(?!`)")
_PROMPT = re.compile(r"^(?:[a-z]*\$ +)?(?:docker compose \w+(?: --rm)? api )?(?:\.venv/bin/)?")
_REDIRECTS = {">", ">>", "<", ">&"}
_ENDS = {*_REDIRECTS, "|", "&", "&&", "||", ";"}
_TREE: Any = typer.main.get_command(app)


def shown(text: str) -> list[list[str]]:
    """The words behind each `loco` of a page's blocks."""
    lines: list[str] = []
    for language, block in _BLOCK.findall(text):
        if language in _SHELLS:
            lines += block.replace("\\\n", " ").splitlines()
    lines += _INDENTED.findall(_BLOCK.sub("", text))
    return [words for line in lines for words in commands(line)]


def commands(line: str) -> list[list[str]]:
    """The words behind each `loco` of a line as a shell reads it."""
    lexer = shlex.shlex(_PROMPT.sub("", line.strip()), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        words = list(lexer)
    except ValueError:  # prose or YAML with one quote
        return []
    found: list[list[str]] = []
    begins, ours = True, False
    for word in words:
        if word in _ENDS:
            begins, ours = word not in _REDIRECTS, False
            continue
        if begins:
            ours = word == "loco"
            found += [[]] if ours else []
        elif ours:
            found[-1].append(word)
        begins = False
    return found


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """A line's command and its parameters, read by the parser that runs it; nothing is run.

    Raises:
        typer.TyperException: it is no such line.
    """
    command, context = _TREE, None
    rest = global_options_first(words)
    if "--install-completion" in rest:  # the parser itself would write to this user's shell
        return "loco", {}
    while True:
        context = command.make_context(command.name, rest, parent=context)
        if not hasattr(command, "commands"):
            return context.command_path, context.params
        rest = [*context._protected_args, *context.args]
        if not rest:
            if command.no_args_is_help or not command.invoke_without_command:
                raise typer.BadParameter(f"{context.command_path} needs a command")
            return context.command_path, context.params
        _, command, rest = command.resolve_command(context, rest)
        assert command is not None


def settings(command: str, parameters: dict[str, Any]) -> None:
    """Resolves what `--set` says over the recipe that the line names, where it is one of ours.

    Raises:
        LocoError: a field or value that no recipe takes.
    """
    assigned = parameters.get("assignments") or parameters.get("overrides") or []
    adapter = parameters.get("adapter")
    if adapter not in adapter_names(ADAPTERS):
        adapter = "math"
    if command.endswith(" sweep"):
        grid, fields = parse_grid(assigned)
        for name, values in grid.items():
            _resolved(adapter, parameters, parse_assignments([f"{name}={values[0]}"]))
    else:
        fields = parse_assignments(assigned)
    _resolved(adapter, parameters, fields)


def _resolved(adapter: str, parameters: dict[str, Any], fields: dict[str, Any]) -> None:
    profile = parameters.get("profile") or "default"
    resolve(ADAPTERS, JobRequest(adapter=adapter, profile=profile, **fields))


def faults(text: str, folder: Path) -> list[str]:
    """What is wrong with a page's lines."""
    found = []
    for words in shown(text):
        try:
            command, parameters = parsed(words)
            settings(command, parameters)
        except typer.Exit:  # --help, --version
            continue
        except (typer.TyperException, LocoError) as error:
            message = error.format_message() if hasattr(error, "format_message") else str(error)
            found.append(f"loco {shlex.join(words)}: {message}")
    return found


def mentioned(text: str) -> list[str]:
    """What is wrong with `loco …` in the middle of sentences and tables, where arguments may be left out."""
    found = []
    for span in _SPAN.findall(text):
        command, path = _TREE, ["loco"]
        words = re.sub(r"[\[\]…]", " ", span).split()[1:]
        known = {name for each in command.params for name in each.opts}
        for word in words:
            inner = getattr(command, "commands", {})
            if inner and word.isupper():  # COMMAND stands for any
                break
            if inner and not word.startswith("-"):
                if word not in inner:
                    found.append(f"`{span}`: {' '.join(path)} has no command {word}")
                    break
                command, path = inner[word], [*path, word]
                known |= {
                    name for each in command.params for name in (*each.opts, *each.secondary_opts)
                }
            elif word.startswith("--") and word.partition("=")[0] not in known:
                found.append(f"`{span}`: {' '.join(path)} has no option {word}")
    return found


@pytest.mark.parametrize("page", [*PAGES, *HOW_TOS], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_line_parses(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert faults(page.read_text(), tmp_path) == []


@pytest.mark.parametrize("page", [*PAGES, *HOW_TOS], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_mentioned_command_exists(page: Path) -> None:
    assert mentioned(page.read_text()) == []


def test_how_tos_show_commands() -> None:
    assert len(HOW_TOS) > 6
    for page in HOW_TOS:
        assert page.name == "README.md" or shown(page.read_text()), page


def test_no_line_is_overlooked() -> None:
    """Behind prompts, comments, containers and paths."""
    made = ["keys", "create", "laptop", "--scope", "admin"]
    assert made in shown((ROOT / "README.md").read_text())
    assert shown((ROOT / "docs" / "deploy.md").read_text()).count(made) == 2
    assert ["chat", "math", "--job", "last"] in shown((ROOT / "docs" / "cli.md").read_text())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("loco submitt math", "No such command"),
        ("loco keys make laptop", "No such command"),
        ("loco submit math --profil tiny", "No such option"),
        ("loco rm", "Missing argument"),
        ("loco promote math newest", "valid integer"),
        ("loco submit math --set train.lr=1e-4", "train.lr: unknown field"),
        ("loco sweep math --set train.lr=1e-4,2e-4", "train.lr: unknown field"),
        ("loco submit math --profile smal", "smal"),
        ("true && loco jobs --all | head", "No such option"),
    ],
)
def test_a_wrong_line_is_found(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (fault,) = faults(f"```console\n$ {line}   # why\n```\n", tmp_path)
    assert says in fault
    (again,) = faults(f"as in\n\n    {line}\n", tmp_path)
    assert again == fault


@pytest.mark.parametrize(
    "span", ["`loco submitt`", "`loco keys make`", "`loco data push FILE [--nam X]`"]
)
def test_a_wrong_mention_is_found(span: str) -> None:
    assert mentioned(f"Take {span} for it.")
