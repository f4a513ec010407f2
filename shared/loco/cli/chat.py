"""`loco chat`: talks to a version of an adapter, to its base, or to both beside each other.

loco chat math "What is 17 + 25?" --side-by-side
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loco.cli import completion
from loco.cli.console import client, note, show, show_error, show_json, stdout
from loco.cli.jobs import JsonOption
from loco.cli.versions import AdapterArgument
from loco.client.client import Client
from loco.contracts.errors import InvalidRequest, LocoError, NotFound
from loco.contracts.printable import printable
from loco.contracts.versions import Version

#: Characters of a question that comes by a pipe.
_LONGEST = 500_000
#: What eval asks with where a version says nothing of it.
_TEMPERATURE = 0.0
#: Columns below which two answers are not put beside each other.
_NARROWEST = 60
_REDRAWS_PER_SECOND = 8
_ENDS = ("/bye", "/exit", "/quit")


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(chat)


@dataclass
class Side:
    """One model of the conversation, and what was said with it."""

    role: str
    model: str
    options: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Which of the two it is, and its name in Ollama."""
        return f"{self.role}: {self.model}"


def chat(
    context: typer.Context,
    adapter: AdapterArgument,
    question: Annotated[
        str | None,
        typer.Argument(
            help="A question to ask once. Without it: a conversation, or the text from a pipe."
        ),
    ] = None,
    *,
    version: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Version to talk to. Default: the one that serves.",
            autocompletion=completion.versions,
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            help="Talk to the version that this job registered.",
            autocompletion=completion.ended_jobs,
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model instead.")] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Ask the base model too, and show both answers.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Talk to an adapter's model: the version that serves, another one, its base, or both."""
    if version is not None and job is not None:
        raise InvalidRequest(
            "--version and --job both choose a version.",
            param="--job",
            hint="Give only one of them.",
        )
    if question is None and not sys.stdin.isatty():
        question = _piped()
    if as_json and question is None:
        raise InvalidRequest(
            "--json needs a question.", param="--json", hint=f'loco chat {adapter} "…" --json'
        )
    with client(context) as loco:
        chosen = _chosen(loco, adapter, version, job and loco.job_id(job))
        sides = _sides(chosen, base=base, side_by_side=side_by_side)
        try:
            if as_json:
                show_json(_told(loco, sides, str(question)))
            elif question is not None:
                _ask(loco, sides, question)
            else:
                _converse(loco, sides)
        except NotFound as error:
            raise _absent(error, adapter, chosen) from error
    return 0


def _piped() -> str:
    text = sys.stdin.read(_LONGEST + 1)
    if len(text) > _LONGEST or not text.strip():
        raise InvalidRequest(
            f"The pipe brought {'too long a' if text.strip() else 'no'} question. It must have "
            f"1 to {_LONGEST:,} characters.",
            param="question",
            hint='Ask like this: loco chat NAME "…", or echo … | loco chat NAME.',
        )
    return text.strip()


def _chosen(loco: Client, adapter: str, number: int | None, job: str | None) -> Version:
    """The version that is meant.

    Raises:
        NotFound: there is none, or none serves.
        InvalidRequest: several serve, and none is that of the recipe.
    """
    if number is None and job is None:
        number = _serving(loco, adapter)
    after = None if number is None else number + 1
    for version in loco.versions(adapter, after=after):
        if number in (None, version.version) and job in (None, version.job):
            return version
        if number is not None:
            break
    asked = f"version of job {job}" if job else f"version {number}"
    raise NotFound(
        f"Adapter {adapter!r} has no {asked}.",
        param="--job" if job else "--version",
        hint=f"`loco versions {adapter}` lists them.",
    )


def _serving(loco: Client, adapter: str) -> int:
    """The number of the version that serves: as the recipe's own model, else as the only one."""
    pointers = {p.model: p for p in loco.promoted(adapter)}
    if not pointers:
        built = next(iter(loco.versions(adapter, page_size=1)), None)
        if built is None:
            hint = f"Build one: `loco submit {adapter} --wait`."
        else:
            hint = f"Talk to the newest version: `loco chat {adapter} --version {built.version}`."
        raise NotFound(f"No version of {adapter!r} is serving.", param="adapter", hint=hint)
    if len(pointers) == 1:
        return next(iter(pointers.values())).version
    own = loco.adapter(adapter).get("model_name")
    if own in pointers:
        return pointers[own].version
    named = ", ".join(f"{p.model} (--version {p.version})" for p in pointers.values())
    raise InvalidRequest(
        f"Several models of {adapter!r} are serving: {named}.",
        param="--version",
        hint="Choose one with --version.",
    )


def _sides(chosen: Version, *, base: bool, side_by_side: bool) -> list[Side]:
    """Who is asked. Each with the version's temperature and limit: /v1 would take OpenAI's temperature."""
    told = chosen.parameters
    options = {
        "temperature": told.get("temperature", _TEMPERATURE),
        "top_p": told.get("top_p", 1.0),
        "reasoning_effort": "none",  # as in training and eval
    }
    if limit := told.get("num_predict"):  # the base has none of its own, and may never end
        options["max_tokens"] = limit
    sides = []
    if base or side_by_side:
        sides.append(Side("base", chosen.base_ollama, options))
    if not base or side_by_side:
        model = f"{chosen.model}:latest" if chosen.promoted else chosen.candidate
        sides.append(Side(f"version {chosen.version}", model, options))
    return sides


def _absent(error: NotFound, adapter: str, chosen: Version) -> NotFound:
    """What Ollama does not hold, with how it comes there."""
    hint = (
        f"`loco setup {adapter} --version {chosen.version}` creates the version again. `ollama "
        f"pull {chosen.base_ollama}` on the server fetches the base."
    )
    return NotFound(error.message, param=error.param, hint=hint)


def _told(loco: Client, sides: list[Side], question: str) -> dict[str, Any]:
    """The answers as a document."""
    answers = [
        {"who": side.role, "model": side.model, "answer": "".join(_answer(loco, side, question))}
        for side in sides
    ]
    return {"question": question, "answers": answers}


def _answer(loco: Client, side: Side, question: str) -> Iterator[str]:
    """The pieces of an answer; the conversation remembers what came, also where it is broken off."""
    said = ""
    asked = {"role": "user", "content": question}
    try:
        for piece in loco.chat(side.model, [*side.messages, asked], **side.options):
            said += piece
            yield piece
    finally:
        if said:
            side.messages += [asked, {"role": "assistant", "content": said}]


def _converse(loco: Client, sides: list[Side]) -> None:
    """Question after question, until Ctrl-D, Ctrl-C or /bye. Ctrl-C in an answer ends the answer."""
    import readline  # noqa: F401, PLC0415 (arrow keys and history in `input`)

    note(f"{' | '.join(side.title for side in sides)}. Ctrl-D or /bye ends the chat.")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        if question in _ENDS:
            return
        if not question:
            continue
        try:
            _ask(loco, sides, question)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            note("Stopped. Press Ctrl-C again to end the conversation.")
        except NotFound:
            raise
        except LocoError as error:
            show_error(error)


def _ask(loco: Client, sides: list[Side], question: str) -> None:
    """Shows the answers as they come: one below its heading, two beside each other."""
    if len(sides) == 1:
        _stream(_answer(loco, sides[0], question))
        return
    console = stdout()
    if not console.is_terminal or console.width < _NARROWEST:
        for side in sides:
            show(Text(side.title, style="bold"))
            _stream(_answer(loco, side, question))
        return
    texts = [""] * len(sides)

    def columns() -> Table:
        return _beside(sides, texts)

    live = Live(get_renderable=columns, console=console, transient=True)
    live.refresh_per_second = _REDRAWS_PER_SECOND
    try:
        with live:
            for place, side in enumerate(sides):
                for piece in _answer(loco, side, question):
                    texts[place] += piece
    finally:
        console.print(columns())


def _beside(sides: list[Side], texts: list[str]) -> Table:
    shown = Table(box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
    for side in sides:
        shown.add_column(Text(side.title), ratio=1, overflow="fold")
    shown.add_row(*(Text(text) for text in texts))
    return shown


def _stream(pieces: Iterator[str]) -> None:
    """Prints an answer as it comes, with nothing in it that a terminal would obey."""
    write: Callable[[str], object] = sys.stdout.write
    last = ""
    try:
        for piece in pieces:
            write(printable(piece))
            sys.stdout.flush()
            last = piece
    finally:
        if last and not last.endswith("\n"):
            write("\n")
            sys.stdout.flush()
