"""`loco eval`: measures a registered model of an adapter against its base.

loco eval math
loco eval math --profile tiny
loco eval math --version 3 --set eval.sets.held_out.count=all
"""

from typing import Annotated

import typer

from loco.cli import completion
from loco.cli.console import client, note, show, show_json
from loco.cli.jobs import JsonOption, exit_code, follow
from loco.cli.overrides import parse_assignments
from loco.cli.summary import comparison_table, render, serving
from loco.cli.versions import AdapterArgument
from loco.client.client import Client
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.jobs import JobStatus
from loco.contracts.requests import DEFAULT_PROFILE
from loco.contracts.results import EvalResult
from loco.contracts.stages import Stage
from loco.contracts.versions import Version


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("eval")(evaluate)


def evaluate(
    context: typer.Context,
    adapter: AdapterArgument,
    *,
    profile: Annotated[
        str | None, typer.Option(help="Measure the newest model of this profile.")
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            help="Measure the model that this job registered.", autocompletion=completion.jobs
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Measure this version, see `loco versions`.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Field of stage eval, like eval.sets.held_out.count=all.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Measure the newest registered model of an adapter against its base model."""
    overrides = parse_assignments(assignments or [])
    if foreign := [name for name in overrides if name not in ("eval", "seed")]:
        raise InvalidRequest(
            f"--set {foreign[0]}…: `loco eval` runs only stage eval.",
            param="--set",
            hint="Set a field of eval, like --set eval.sets.held_out.count=all. --job chooses "
            "the model. `loco submit` sets fields of other stages.",
        )
    with client(context) as loco:
        chosen = _chosen(
            loco, adapter, profile=profile, job=job and loco.job_id(job), number=version
        )
        note(f"Measuring version {chosen.version}, {chosen.candidate}.")
        accepted = loco.submit(
            adapter,
            profile=chosen.profile or DEFAULT_PROFILE,
            stages=[Stage.EVAL],
            from_job=chosen.job,
            **overrides,
        )
        ended = follow(loco, accepted)
    task = ended.stage(Stage.EVAL)
    if as_json:
        show_json(ended)
    elif ended.status is JobStatus.SUCCEEDED and task is not None and task.result is not None:
        show(comparison_table(EvalResult.model_validate(task.result, extra="ignore")))
        if served := serving(ended):
            show("", served)
    else:
        show(render(ended))
    return exit_code(ended)


def _chosen(
    loco: Client, adapter: str, *, profile: str | None, job: str | None, number: int | None
) -> Version:
    """The newest version that is all that was asked for."""
    wanted = {"--profile": profile, "--job": job, "--version": number}
    after = None if number is None else number + 1
    for version in loco.versions(adapter, after=after):
        if (
            profile in (None, version.profile)
            and job in (None, version.job)
            and number in (None, version.version)
        ):
            return version
        if number is not None:
            break  # the first after the next one is it, or there is none
    asked = " ".join(f"{option} {value}" for option, value in wanted.items() if value is not None)
    if not asked:
        raise NotFound(
            f"Adapter {adapter!r} has no registered model to measure.",
            hint=f"Build one: `loco submit {adapter} --wait`.",
        )
    raise NotFound(
        f"Adapter {adapter!r} has no registered model for {asked}.",
        param=next(option for option, value in wanted.items() if value is not None),
        hint=f"`loco versions {adapter}` lists them.",
    )
