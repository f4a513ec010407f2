"""Commands about sweeps: sweep, sweeps."""

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from loco.cli import sweep_view
from loco.cli.adapters import pushed_first
from loco.cli.console import client, note, show, show_json, stderr
from loco.cli.listing import Listing
from loco.cli.notify import Notice, NotifyCommandOption, NotifyOption
from loco.cli.overrides import parse_grid, parse_metadata
from loco.cli.summary import STYLES, render
from loco.client.client import Client
from loco.contracts.errors import InvalidRequest
from loco.contracts.figures import duration
from loco.contracts.jobs import JobStatus
from loco.contracts.requests import DEFAULT_PROFILE
from loco.contracts.stages import Stage
from loco.contracts.sweeps import MOST_POINTS, RankBy, Sweep, SweepSummary

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands in the order in which help lists them."""
    for command in (sweep, sweeps):
        app.command()(command)


def sweep(
    context: typer.Context,
    adapter: Annotated[str, typer.Argument(help="Name of the adapter, see `loco adapters`.")],
    *,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE[,VALUE]...",
            help="Field of train with its values, like train.learning_rate=1e-4,2e-4, or a "
            "field of any stage with one value.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=MOST_POINTS, help="Train each combination with this many seeds."),
    ] = 1,
    rank_by: Annotated[
        RankBy, typer.Option(help="The loss that decides which is best.")
    ] = RankBy.VALIDATION_LOSS,
    export: Annotated[
        Literal["best", "none"],
        typer.Option(
            help="best: export, register and measure the best. none: stop after training."
        ),
    ] = "best",
    no_early_stop: Annotated[
        bool,
        typer.Option(
            "--no-early-stop",
            help="Train all to the end, even those worse than the median of the others.",
        ),
    ] = False,
    profile: Annotated[str, typer.Option(help="Profile of the recipe.")] = DEFAULT_PROFILE,
    base_model: Annotated[
        str | None, typer.Option(help="A base model from adapters/base_models.yaml.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every stage.")] = None,
    no_reuse: Annotated[
        bool, typer.Option("--no-reuse", help="Run stages again even if an earlier run matches.")
    ] = False,
    priority: Annotated[int, typer.Option(help="-100 to 100. Higher runs first.")] = 0,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A label of your own. Repeat for more."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show progress until the sweep ends.")
    ] = False,
    notify: NotifyOption = False,
    notify_command: NotifyCommandOption = None,
    as_json: JsonOption = False,
) -> int:
    """Train an adapter several ways on the same rows and build the best one."""
    tell = Notice(notify, notify_command)
    if tell and not wait:
        raise InvalidRequest(
            "--notify needs --wait: this program tells of the end, not the server.",
            param="--notify",
            hint="Add --wait, or later: `loco watch SWEEP --notify`.",
        )
    grid, single = parse_grid(assignments or [])
    if other := sorted(single.keys() - set(Stage)):
        raise InvalidRequest(
            f"--set {other[0]}: this is not a field of a stage.",
            param="--set",
            hint="Write it like --set train.epochs=2,4. Everything else has its own option, see "
            "`loco sweep --help`.",
        )
    asked: dict[str, Any] = {
        "base_model": base_model,
        "seed": seed,
        "reuse": False if no_reuse else None,
        "priority": priority or None,
        "metadata": parse_metadata(metadata or []) or None,
    }
    with client(context) as loco:
        with pushed_first(adapter):
            accepted = loco.submit_sweep(
                adapter,
                grid,
                **single | {name: value for name, value in asked.items() if value is not None},
                profile=profile,
                seeds=seeds,
                rank_by=rank_by,
                export_best=export == "best",
                early_stop=not no_early_stop,
            )
        if not wait:
            _show(accepted, as_json=as_json)
            note(f"Accepted. Follow it with `loco watch {accepted.id}`.")
            return 0
        return watch(loco, accepted.id, tell, as_json=as_json)


def sweeps(
    context: typer.Context,
    sweep_id: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="Sweep to show with its points.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List sweeps, newest first, or show one."""
    with client(context) as loco:
        if sweep_id is not None:
            _show(loco.sweep(sweep_id), as_json=as_json)
            return
        found = list(islice(loco.sweeps(page_size=min(limit, 100)), limit))
    if as_json:
        show_json(found)
        return
    columns = ("sweep", "adapter", "profile", "owner", "status", "points", "best", "age")
    spare = ("owner", "profile", "age", "best", "adapter")
    rows = Listing(*columns, right=("points", "best", "age"), spare=spare)
    for entry in found:
        rows.add_row(*_row(entry))
    show(rows) if found else note("No sweeps.")


def is_sweep(word: str) -> bool:
    """Whether an ID is a sweep's, not a job's."""
    return word.startswith("sweep-")


def watch(loco: Client, sweep_id: str, tell: Notice, *, as_json: bool) -> int:
    """Shows a sweep's progress until it has ended, then its table and what became of the best."""
    try:
        ended = sweep_view.follow(loco, sweep_id, stderr())
    except KeyboardInterrupt:
        note(
            f"The sweep continues. `loco watch {sweep_id}` shows it again, `loco cancel {sweep_id}` "
            "ends it."
        )
        raise
    _show(ended, as_json=as_json)
    if ended.final_job is not None and not as_json:
        show("", render(loco.job(ended.final_job)))
    tell.of(ended)
    return 0 if ended.status is JobStatus.SUCCEEDED else 1


def cancel(loco: Client, sweep_id: str, *, as_json: bool) -> None:
    """Cancels a sweep, and says what became of it."""
    cancelled = loco.cancel_sweep(sweep_id)
    if as_json:
        show_json(cancelled)
    elif cancelled.is_terminal:
        show(sweep_view.headline(cancelled))
    else:
        show(f"Sweep {cancelled.id} stops: its running job ends at its next safe point.")


def _show(shown: Sweep, *, as_json: bool) -> None:
    show_json(shown) if as_json else show(sweep_view.render(shown))


def _row(entry: SweepSummary) -> list[str | Text]:
    return [
        entry.id,
        entry.adapter,
        entry.profile,
        entry.owner or "",
        Text(entry.status.value, style=STYLES[entry.status]),
        str(entry.size),
        "" if entry.best is None else str(entry.best),
        duration((datetime.now(UTC) - entry.created_at).total_seconds()),
    ]
