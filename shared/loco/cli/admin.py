"""Commands about the service: up, workers, doctor, version."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from loco.box.doctor import Finding, Level, examine
from loco.cli.console import client, note, on_the_server, show, show_json
from loco.cli.listing import Listing
from loco.client.running import up_at
from loco.contracts.errors import LocoError
from loco.contracts.release import is_client_alone, release
from loco.settings import Settings, variables_here

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

#: The longest words that stand there: `warning`, `code in answers`.
_LEVEL_COLUMNS, _NAME_COLUMNS = 7, 16
_LEVELS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def add_to(app: typer.Typer) -> None:
    """Adds the commands in the order in which help lists them."""
    for command in (up, workers, doctor, version):
        app.command()(command)


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on (LOCO_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API (LOCO_PORT).")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Redis data, logs, base models (LOCO_DATA_DIR).")
    ] = None,
    adapters_dir: Annotated[
        Path | None, typer.Option(help="Recipes and what jobs build (LOCO_ADAPTERS_DIR).")
    ] = None,
) -> int:
    """Run everything on this machine in this terminal, until Ctrl-C."""
    from loco.box.up import run_up  # noqa: PLC0415 (no other command needs the supervisor)

    asked = {
        "LOCO_HOST": host,
        "LOCO_PORT": port,
        "LOCO_DATA_DIR": data_dir,
        "LOCO_ADAPTERS_DIR": adapters_dir,
    }
    given = {name: str(value) for name, value in asked.items() if value is not None}
    return run_up(Settings.from_environment({**variables_here(), **given}))


def workers(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the workers and what each runs."""
    with client(context) as loco:
        found = loco.workers()
    if as_json:
        show_json(found)
        return
    rows = Listing(
        *("worker", "queue", "device", "host", "pid", "runs"),
        right=("pid",),
        spare=("pid", "host"),
        below="runs",
    )
    for worker in found:
        runs = worker.task_id or "nothing"
        rows.add_row(worker.id, worker.queue, worker.device, worker.host, str(worker.pid), runs)
    show(rows) if found else note(
        "No workers are running, so jobs wait. Start them with `loco up`."
    )


def doctor(context: typer.Context) -> int:
    """Check this machine (GPU, disk, Redis, Ollama, venvs) and the server. Each problem comes with its fix."""
    if is_client_alone():
        raise on_the_server()
    problems = 0
    with client(context) as loco:
        settings, up = Settings.from_environment(), up_at(loco.server)
        for finding in examine(up.applied_to(settings) if up else settings, loco):
            problems += finding.level is Level.PROBLEM
            show(_found(finding))
    note("Everything works." if not problems else f"{problems} to fix.")
    return 1 if problems else 0


def _found(finding: Finding) -> Table:
    """A finding in columns, so that what is folded stays under its first line."""
    row = Table.grid(padding=(0, 1, 0, 0))
    for width in (_LEVEL_COLUMNS, _NAME_COLUMNS, None):
        row.add_column(width=width, overflow="fold")
    level, name = Text(finding.level, _LEVELS[finding.level]), Text(finding.name, "bold")
    row.add_row(level, name, finding.message)
    if finding.fix and finding.level is not Level.OK:
        row.add_row("", "", f"fix: {finding.fix}")
    return row


def version(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print the versions of this program and of the server, if one answers."""
    versions: dict[str, Any] = {"client": release()}
    with client(context) as loco:
        try:
            versions |= {"server": loco.version()["version"], "address": loco.server}
        except LocoError as error:
            note(f"No server: {error.message}")
    if as_json:
        show_json(versions)
        return
    for name, value in versions.items():
        show(f"{name:<8} {value}")
