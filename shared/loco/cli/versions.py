"""Commands about versions: versions, promote, rollback, setup."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from loco.cli import completion
from loco.cli.console import client, note, show, show_json
from loco.cli.listing import Listing
from loco.client.client import Client
from loco.contracts.errors import InvalidRequest, LocoError
from loco.contracts.evaluation import Role
from loco.contracts.figures import age, share
from loco.contracts.versions import Pointer, Restored, Version

AdapterArgument = Annotated[
    str, typer.Argument(help="Name of the adapter.", autocompletion=completion.adapters)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
ReasonOption = Annotated[str, typer.Option(help="Why you do it, for the audit trail.")]

VERDICTS = {"better": "green", "unproven": "yellow", "refused": "bold red"}


def add_to(app: typer.Typer) -> None:
    """Adds the commands in the order in which help lists them."""
    for command in (versions, promote, rollback, setup):
        app.command()(command)


def versions(
    context: typer.Context,
    adapter: AdapterArgument,
    model: Annotated[str | None, typer.Option(help="Only versions of this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the versions of an adapter, newest first; a mark shows what serves."""
    found: list[Version] = []
    with client(context) as loco:
        for version in loco.versions(adapter, model=model, page_size=min(limit, 100)):
            found.append(version)
            if len(found) == limit:
                break
    if as_json:
        show_json(found)
        return
    right = ("version", "age")
    rows = Listing(
        *("version", "state", "model", "job", "base → adapter", "verdict", "age"),
        right=right,
        spare=("age", "model", "job"),
        below="base → adapter",
    )
    for version in found:
        verdict = version.gate.verdict.value if version.gate else "not measured"
        rows.add_row(
            str(version.version),
            _mark(version),
            version.model,
            version.job,
            _accuracy(version),
            Text(verdict, style=VERDICTS.get(verdict, "dim")),
            _age(version),
        )
    nothing = f"{adapter} has no versions yet. Build one: `loco submit {adapter} --wait`."
    show(rows) if found else note(nothing)
    if gone := [version.version for version in found if version.missing]:
        note(
            f"Ollama no longer has the model of {', '.join(map(str, gone))}. "
            f"`loco setup {adapter} --version {gone[0]}` creates it again."
        )


def promote(
    context: typer.Context,
    adapter: AdapterArgument,
    version: Annotated[
        int,
        typer.Argument(
            min=1,
            help="Number of the version, see `loco versions`.",
            autocompletion=completion.versions,
        ),
    ],
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it even if the gate refused it.")
    ] = False,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a version serve as MODEL:latest."""
    with client(context) as loco:
        promoted = loco.promote(adapter, version, force=force, reason=reason)
    _show_serving(promoted, as_json=as_json)


def rollback(
    context: typer.Context,
    adapter: AdapterArgument,
    *,
    model: Annotated[
        str | None, typer.Option(help="Model to roll back. Default: the adapter's usual model.")
    ] = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make the previously promoted version serve again."""
    with client(context) as loco:
        promoted = loco.rollback(adapter, model=model, reason=reason)
    _show_serving(promoted, as_json=as_json)


def setup(
    context: typer.Context,
    adapter: Annotated[str | None, typer.Argument(help="Only this adapter. Default: all.")] = None,
    *,
    number: Annotated[
        int | None,
        typer.Option("--version", min=1, help="This version of ADAPTER, promoted or not."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Create models again even if Ollama has them.")
    ] = False,
) -> int:
    """Create promoted versions that Ollama does not have, from their GGUFs."""
    if number is not None and adapter is None:
        raise InvalidRequest(
            "--version needs the name of an adapter.",
            param="--version",
            hint=f"Write `loco setup ADAPTER --version {number}`.",
        )
    with client(context) as loco:
        if adapter is not None and number is not None:
            _tell(loco.restore(adapter, number, anew=everything))
            return 0
        wanted = loco.promoted(adapter)
        failures = sum(not _restored(loco, pointer, anew=everything) for pointer in wanted)
    if not wanted:
        note("No version is promoted yet. Build an adapter first: `loco submit math --wait`.")
    return 1 if failures else 0


def _restored(loco: Client, pointer: Pointer, *, anew: bool) -> bool:
    """Has a promoted version made again, and says what came of it."""
    try:
        _tell(loco.restore(pointer.adapter, pointer.version, anew=anew))
    except LocoError as error:
        words = " ".join(filter(None, (error.message, error.hint)))
        show(f"{pointer.latest} (version {pointer.version}) could not be created: {words}")
        return False
    return True


def _tell(made: Restored) -> None:
    show(_made(made))
    for warning in made.warnings:
        show(f"  warning: {warning}")


def _made(made: Restored) -> str:
    name = f"{made.model}:latest" if made.promoted else made.candidate
    text = f"{name} (version {made.version}) {'was made again' if made.created else 'is there'}."
    if made.digest != made.previous_digest:
        return f"{text} Its digest is now {made.digest[:12]}; it was {made.previous_digest[:12]}."
    return text


def _show_serving(version: Version, *, as_json: bool) -> None:
    if as_json:
        show_json(version)
    else:
        show(f"{version.model}:latest is version {version.version} ({version.candidate}).")


def _mark(version: Version) -> Text:
    if version.missing:
        return Text("model gone", style="bold red" if version.promoted else "yellow")
    if not version.promoted:
        return Text("")
    if version.served_at is None:
        return Text("waits for Ollama", style="yellow")
    return Text("serves", style="green")


def _accuracy(version: Version) -> str:
    """The primary set's figures, or the first set's."""
    scores = version.scores or {}
    sets = sorted(scores, key=lambda name: scores[name].get("role") != Role.PRIMARY)
    for name in sets:
        base, candidate = (_share_solved(scores[name].get(who)) for who in ("base", "candidate"))
        if base is not None and candidate is not None:
            return f"{name} {share(base)} → {share(candidate)}"
    return ""


def _share_solved(score: Any) -> float | None:
    """An accuracy; releases before the gate recorded it alone, without what it was made of."""
    accuracy = score.get("accuracy") if isinstance(score, dict) else score
    return float(accuracy) if isinstance(accuracy, int | float) else None


def _age(version: Version) -> str:
    try:
        registered = datetime.fromisoformat(version.registered_at)
    except ValueError:
        return ""
    return age((datetime.now(UTC) - registered).total_seconds())
