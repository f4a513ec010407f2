"""Commands about jobs: submit, jobs, job, watch, cancel, retry."""

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import typer
from rich.text import Text

from loco.cli import completion
from loco.cli import plan as cli_plan
from loco.cli import watch as cli_watch
from loco.cli.adapters import pushed_first
from loco.cli.console import client, note, show, show_json, stderr
from loco.cli.data import MapOption, rows_for_job
from loco.cli.listing import Listing
from loco.cli.moments import absolute, moment
from loco.cli.new import made_for_job
from loco.cli.notify import Notice, NotifyCommandOption, NotifyOption
from loco.cli.overrides import parse_assignments, parse_metadata
from loco.cli.summary import STYLES, headline, is_promoted, render, verdict
from loco.cli.sweeps import cancel as cancel_sweep
from loco.cli.sweeps import is_sweep
from loco.cli.sweeps import watch as watch_sweep
from loco.cli.versions import VERDICTS
from loco.client.client import Client
from loco.contracts.errors import InvalidRequest
from loco.contracts.figures import age, duration
from loco.contracts.jobs import Job, JobStatus
from loco.contracts.requests import DEFAULT_PROFILE
from loco.contracts.stages import Stage
from loco.recipes.resolve import merge

JOB = "ID of the job, a few characters of it, or `last` for your newest."
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help=JOB, autocompletion=completion.jobs)
]
WaitingJobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help=JOB, autocompletion=completion.waiting_jobs)
]
StoppedJobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help=JOB, autocompletion=completion.stopped_jobs)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
ProfileOption = Annotated[
    str,
    typer.Option("--profile", help="Profile of the recipe.", autocompletion=completion.profiles),
]
NoReuseOption = Annotated[
    bool,
    typer.Option(
        "--no-reuse", help="Run prepare, train and export again even if an earlier run matches."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands in the order in which help lists them."""
    for command in (submit, jobs, job, watch, cancel, retry):
        app.command()(command)


def submit(
    context: typer.Context,
    adapter: Annotated[
        str,
        typer.Argument(
            help="Name of the adapter, see `loco adapters`.", autocompletion=completion.adapters
        ),
    ],
    *,
    profile: ProfileOption = DEFAULT_PROFILE,
    stages: Annotated[
        str | None,
        typer.Option(help="Stages to run, one after the other, like `export,register,eval`."),
    ] = None,
    from_job: Annotated[
        str | None,
        typer.Option(
            help="Job whose outputs replace the stages left out.",
            autocompletion=completion.jobs,
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="A base model from adapters/base_models.yaml.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every stage.")] = None,
    no_reuse: NoReuseOption = False,
    priority: Annotated[int, typer.Option(help="-100 to 100. Higher runs first.")] = 0,
    after: Annotated[
        str | None,
        typer.Option(help="Start then, like 22:00 or 2026-12-24 06:30, or after 90m, 2h, 3d."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A label of your own. Repeat for more."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Field of a stage, like train.epochs=5."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Train on your rows: a file, or a data set from `loco data list`.",
        ),
    ] = None,
    columns: MapOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until the job ends.")] = False,
    require_promoted: Annotated[
        bool,
        typer.Option(
            "--require-promoted",
            help="With --wait: exit code 1 if the result is not promoted, or is refused.",
        ),
    ] = False,
    notify: NotifyOption = False,
    notify_command: NotifyCommandOption = None,
    as_json: JsonOption = False,
) -> int:
    """Submit a job. With --wait, the exit code tells how it ended."""
    if require_promoted and not wait:
        raise InvalidRequest(
            "--require-promoted needs --wait.",
            param="--require-promoted",
            hint="The gate decides at the end of the job: add --wait.",
        )
    tell = Notice(notify, notify_command)
    if tell and not wait:
        raise InvalidRequest(
            "--notify needs --wait: this program notifies you, not the server.",
            param="--notify",
            hint="Add --wait, or run `loco watch last --notify` later.",
        )
    asked: dict[str, Any] = {
        "from_job": from_job,
        "base_model": base_model,
        "seed": seed,
        "reuse": False if no_reuse else None,
        "priority": priority or None,
        "not_before": after and absolute(after).isoformat(),
        "metadata": parse_metadata(metadata or []) or None,
    }
    overrides = merge(
        {name: value for name, value in asked.items() if value is not None},
        parse_assignments(assignments or []),
    )
    if columns and data is None:
        raise InvalidRequest("--map needs --data.", param="--map", hint="Add --data FILE.")
    with client(context) as loco:
        if data is not None and not made_for_job(loco, adapter, data, columns, base_model):
            overrides = rows_for_job(loco, adapter, data, columns, overrides)
        if "from_job" in overrides:
            overrides["from_job"] = loco.job_id(str(overrides["from_job"]))
        cli_plan.warn(loco, adapter, profile=profile, stages=_stages(stages), **overrides)
        with pushed_first(adapter):
            accepted = _submit(loco, adapter, profile=profile, stages=_stages(stages), **overrides)
        if not wait:
            show_job(accepted, as_json=as_json)
            note(f"Accepted. Follow it with `loco watch {accepted.id}`.")
            return 0
        ended = follow(loco, accepted)
    show_job(ended, as_json=as_json)
    tell.of(ended)
    if require_promoted and not is_promoted(ended):
        return 1
    return exit_code(ended)


def jobs(
    context: typer.Context,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs of this status.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Only jobs of this adapter.", autocompletion=completion.adapters),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with client(context) as loco:
        pages = loco.jobs(
            status=status,
            adapter=adapter,
            page_size=min(limit, 100),
            on_unreadable=lambda job: note(f"{job.id} is not shown: {job.message}"),
        )
        found = list(islice(pages, limit))
    if as_json:
        show_json(found)
        return
    swept = ("sweep",) if any(entry.spec.sweep for entry in found) else ()
    rows = Listing(
        *("job", "adapter", "profile", "owner", "status", "stage", "gate", "age", "took", *swept),
        right=("age", "took"),
        spare=("owner", "profile", "took", "age", "gate", "adapter"),
        below="sweep" if swept else None,
    )
    for entry in found:
        rows.add_row(
            entry.id,
            entry.adapter,
            entry.profile,
            entry.owner or "",
            Text(entry.status.value, style=STYLES[entry.status]),
            _current_stage(entry),
            Text(said := verdict(entry), style=VERDICTS.get(said, "default")),
            age((datetime.now(UTC) - entry.created_at).total_seconds()),
            _took(entry),
            *((entry.spec.sweep or "",) if swept else ()),
        )
    show(rows) if found else note("No jobs.")


def job(context: typer.Context, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """Show a job: its stages, results and errors."""
    if is_sweep(job_id):
        raise InvalidRequest(
            f"{job_id} is a sweep.", param="job_id", hint=f"Show it with `loco sweeps {job_id}`."
        )
    with client(context) as loco:
        show_job(loco.job(loco.job_id(job_id)), as_json=as_json)


def watch(
    context: typer.Context,
    job_id: JobArgument,
    *,
    notify: NotifyOption = False,
    notify_command: NotifyCommandOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show the progress of a job or sweep until it ends. The exit code tells how it ended."""
    tell = Notice(notify, notify_command)
    with client(context) as loco:
        if is_sweep(job_id):
            return watch_sweep(loco, job_id, tell, as_json=as_json)
        seen = loco.job(loco.job_id(job_id))
        ended = seen if seen.is_terminal else follow(loco, seen)
    show_job(ended, as_json=as_json)
    tell.of(ended)
    return exit_code(ended)


def cancel(context: typer.Context, job_id: WaitingJobArgument, as_json: JsonOption = False) -> None:
    """Cancel a job, or a sweep with its jobs, in any state. Running training saves a checkpoint."""
    with client(context) as loco:
        if is_sweep(job_id):
            cancel_sweep(loco, job_id, as_json=as_json)
            return
        before = loco.job(loco.job_id(job_id))
        cancelled = loco.cancel(before.id)
    if as_json:
        show_json(cancelled)
    elif before.is_terminal or (
        cancelled.is_terminal and cancelled.status is not JobStatus.CANCELLED
    ):
        show(Text("Nothing to cancel, it had ended already: ") + headline(cancelled))
    elif cancelled.is_terminal:
        show(headline(cancelled))
    else:
        show(f"Job {cancelled.id} stops at its next safe point.")


def retry(context: typer.Context, job_id: StoppedJobArgument, as_json: JsonOption = False) -> None:
    """Continue a failed or cancelled job from the stage where it stopped."""
    with client(context) as loco:
        retried = loco.retry(loco.job_id(job_id))
    show_json(retried) if as_json else show(headline(retried))
    note(f"The job continues. Follow it with `loco watch {retried.id}`.")


def _submit(loco: Client, adapter: str, **request: Any) -> Job:
    # --set may name any field of the request; the server knows which there are
    return loco.submit(adapter, **request)


def follow(loco: Client, started: Job) -> Job:
    """Shows progress on standard error until the job has ended."""
    try:
        return cli_watch.follow(loco, started.id, stderr())
    except KeyboardInterrupt:
        note(
            f"Job {started.id} continues. `loco watch {started.id}` shows it again, `loco "
            f"cancel {started.id}` stops it."
        )
        raise


def show_job(shown: Job, *, as_json: bool) -> None:
    """Prints a job: its summary, or JSON."""
    show_json(shown) if as_json else show(render(shown))


def exit_code(ended: Job) -> int:
    """0 for a job that succeeded, refused by the gate or not."""
    return 0 if ended.status is JobStatus.SUCCEEDED else 1


def _stages(words: str | None) -> list[Stage] | None:
    if words is None:
        return None
    stages = []
    for word in words.split(","):
        try:
            stages.append(Stage(word.strip()))
        except ValueError as error:
            raise InvalidRequest(
                f"--stages: there is no stage {word.strip()!r}. Stages: {', '.join(Stage)}.",
                param="--stages",
                hint="Name stages that follow each other, like --stages export,register,eval.",
            ) from error
    return stages


def _current_stage(entry: Job) -> str:
    if entry.is_terminal:
        return entry.error.stage.value if entry.error else ""
    waiting = next((task for task in entry.stages if not task.status.is_terminal), None)
    if waiting is None:
        return ""
    if entry.not_before is not None and entry.started_at is None:
        return f"after {moment(entry.not_before)}"
    percent = waiting.progress.percent if waiting.progress else None
    return waiting.stage.value + (f" {percent:.0f} %" if percent is not None else "")


def _took(entry: Job) -> str:
    return duration(entry.took_seconds) if entry.is_terminal and entry.started_at else ""
