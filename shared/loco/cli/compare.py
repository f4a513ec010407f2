"""Commands about two jobs: diff, replay."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from loco.cli import completion
from loco.cli.console import client, note, show, show_json, table
from loco.cli.jobs import JOB, JobArgument, JsonOption, follow, show_job
from loco.contracts.diffs import Difference, Figure, JobDiff, Sameness
from loco.contracts.errors import InvalidRequest
from loco.contracts.jobs import JobStatus

_STYLES = {
    Sameness.IDENTICAL: "green",
    Sameness.EQUIVALENT: "green",
    Sameness.DIFFERENT: "bold yellow",
}


def add_to(app: typer.Typer) -> None:
    """Adds the commands in the order in which help lists them."""
    app.command()(diff)
    app.command()(replay)


def diff(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="JOB1", help=JOB, autocompletion=completion.jobs)],
    second: Annotated[
        str,
        typer.Argument(metavar="JOB2", help="ID of the other job.", autocompletion=completion.jobs),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show where two jobs differ: recipe, data, environment, outputs, scores."""
    with client(context) as loco:
        _show(loco.diff(loco.job_id(first), loco.job_id(second)), as_json=as_json)


def replay(
    context: typer.Context,
    job_id: JobArgument,
    new: Annotated[
        str | None,
        typer.Argument(metavar="[NEW]", help="With --compare: the replay to compare with."),
    ] = None,
    *,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Only compare JOB with NEW, an ended replay. Runs nothing."),
    ] = False,
    promote: Annotated[
        bool,
        typer.Option("--promote", help="Let the gate promote the replay, as it would the job."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show progress, then the differences.")
    ] = True,
    as_json: JsonOption = False,
) -> int:
    """Run a job again with the same spec and inputs, and show what differs. Exit code 1: something does."""
    if compare != (new is not None):
        raise InvalidRequest(
            "With --compare give two jobs, without it one.",
            param="--compare",
            hint=f"loco replay --compare {job_id} {new or 'NEW'}",
        )
    with client(context) as loco:
        job_id = loco.job_id(job_id)
        if new is None:
            accepted = loco.replay(job_id, promote=promote)
            if not wait:
                show_job(accepted, as_json=as_json)
                note(f"Accepted. When it has ended: loco replay --compare {job_id} {accepted.id}")
                return 0
            ended = follow(loco, accepted)
            if ended.status is not JobStatus.SUCCEEDED:
                show_job(ended, as_json=as_json)
                return 1
            new = ended.id
        found = loco.diff(job_id, loco.job_id(new))
        _show(found, as_json=as_json)
        return 1 if found.verdict is Sameness.DIFFERENT else 0


def _show(found: JobDiff, *, as_json: bool) -> None:
    if as_json:
        show_json(found)
        return
    show(
        Text.assemble(
            f"{found.first} and {found.second}: ",
            (found.verdict.value, _STYLES[found.verdict]),
        )
    )
    for reason in found.reasons:
        show(Text(f"  {reason}"))
    for title, rows in (
        ("recipe", found.recipe),
        ("data", found.data),
        ("environment", found.environment),
        ("outputs", found.outputs),
    ):
        show("", *(_differences(title, rows, found) if rows else [Text(f"{title}: the same")]))
    if found.scores:
        show("", _figures(found.scores, found))


def _differences(
    title: str, rows: Iterable[Difference], found: JobDiff
) -> tuple[RenderableType, ...]:
    shown = table(title, found.first, found.second)
    for row in rows:
        shown.add_row(Text(row.field), Text(_word(row.first)), Text(_word(row.second)))
    return (shown,)


def _figures(rows: Iterable[Figure], found: JobDiff) -> RenderableType:
    shown = table("scores", found.first, found.second, right=(found.first, found.second))
    for row in rows:
        style = "" if row.first == row.second else "yellow"
        shown.add_row(Text(row.field), *(Text(_number(v), style) for v in (row.first, row.second)))
    return shown


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _word(value: Any) -> str:
    if value is None:
        return "-"
    word = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    digest = len(word) == 64 and all(c in "0123456789abcdef" for c in word)
    return f"sha256 {word[:12]}" if digest else word
