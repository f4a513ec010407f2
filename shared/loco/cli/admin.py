"""Commands about the service: up, adapters, workers, setup, doctor, version."""

from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.text import Text

from loco.box.doctor import Level, examine
from loco.cli import watch
from loco.cli.console import client, note, show, show_json, stderr, table
from loco.client.client import Client
from loco.contracts.addresses import hostname, is_loopback
from loco.contracts.errors import LocoError
from loco.contracts.jobs import JobStatus
from loco.contracts.stages import Stage
from loco.settings import Settings, read_up_file, variables_here

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

_LEVELS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def add_to(app: typer.Typer) -> None:
    """Adds the commands in the order in which help lists them."""
    for command in (up, adapters, workers, setup, doctor, version):
        app.command()(command)


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen at (LOCO_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API (LOCO_PORT).")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Redis data, logs, base models (LOCO_DATA_DIR).")
    ] = None,
    adapters_dir: Annotated[
        Path | None, typer.Option(help="Recipes and what is built (LOCO_ADAPTERS_DIR).")
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


def adapters(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the adapters that jobs can build."""
    with client(context) as loco:
        found = loco.adapters()
    if as_json:
        show_json(found)
        return
    rows = table("adapter", "profiles", "base model", "model", "good at")
    for adapter in found:
        error = adapter.get("error")
        rows.add_row(
            str(adapter["name"]),
            ", ".join(adapter.get("profiles", [])),
            adapter.get("base_model") or "",
            adapter.get("model_name") or "",
            Text(error["message"], style="red") if error else adapter.get("description") or "",
        )
    show(rows) if found else note("No adapters: the adapters folder holds no adapter.yaml.")


def workers(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the workers and what each runs."""
    with client(context) as loco:
        found = loco.workers()
    if as_json:
        show_json(found)
        return
    rows = table("worker", "queue", "device", "host", "pid", "runs", right=("pid",))
    for worker in found:
        runs = worker.task_id or "nothing"
        rows.add_row(worker.id, worker.queue, worker.device, worker.host, str(worker.pid), runs)
    show(rows) if found else note("No workers: jobs wait. Start them with `loco up`.")


def setup(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Register also what Ollama has already.")
    ] = False,
) -> int:
    """Create the registered adapters in Ollama, where it lacks them."""
    failures = 0
    with client(context) as loco:
        present = set() if everything else _models_in_ollama(loco)
        entries = [loco.adapter(str(a["name"])) for a in loco.adapters() if not a.get("error")]
        registered = [entry for entry in entries if entry.get("versions")]
        for entry in registered:
            model = f"{entry['model_name']}:latest"
            if model in present:
                show(f"{model} is there.")
            elif (problem := _register_again(loco, entry)) is None:
                show(f"{model} was created.")
            else:
                failures += 1
                show(f"{model} could not be created: {problem}")
    if not registered:
        note("Nothing is registered yet. Build an adapter first: `loco submit math --wait`.")
    return 1 if failures else 0


def doctor(context: typer.Context) -> int:
    """Check this machine (GPU, disk, Redis, Ollama, venvs) and the server; say how to mend it."""
    problems = 0
    with client(context) as loco:
        for finding in examine(Settings.from_environment(), loco):
            problems += finding.level is Level.PROBLEM
            show(
                Text.assemble(
                    (f"{finding.level:<8}", _LEVELS[finding.level]),
                    (f"{finding.name:<17}", "bold"),
                    finding.message,
                )
            )
            if finding.fix and finding.level is not Level.OK:
                show(Text(f"{'':25}fix: {finding.fix}"))
    note("Everything that must work does." if not problems else f"{problems} to mend.")
    return 1 if problems else 0


def version(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print the versions of this program and of the server, if one answers."""
    versions: dict[str, Any] = {"client": metadata.version("locollm")}
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


def _models_in_ollama(loco: Client) -> set[str]:
    """Models of the Ollama the server uses, when that is on this machine; else none are known."""
    if not is_loopback(hostname(loco.server)):
        note("The server is elsewhere, so what its Ollama has is not known: all are registered.")
        return set()
    settings = Settings.from_environment()
    host = str(read_up_file(settings.data_dir).get("ollama_host") or settings.ollama_host)
    try:
        with httpx.Client(trust_env=not is_loopback(hostname(host)), timeout=10) as http:
            models = http.get(f"{host}/api/tags").raise_for_status().json()["models"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        note(
            f"What Ollama at {host} has is not known ({type(error).__name__}): all are registered."
        )
        return set()
    return {str(model["name"]) for model in models}


def _register_again(loco: Client, entry: dict[str, Any]) -> str | None:
    """Runs stage register on the job that built the model; answers what went wrong, if anything."""
    versions = entry["versions"]  # newest first
    used = next((v for v in versions if v["promoted"]), versions[0])
    builder = str(used["job"])
    try:
        job = loco.submit(
            str(entry["name"]),
            profile=loco.job(builder).profile,
            stages=[Stage.REGISTER],
            from_job=builder,
        )
        ended = watch.follow(loco, job.id, stderr())
    except LocoError as error:
        return f"{error.message} {error.hint or ''}"
    if ended.status is JobStatus.SUCCEEDED:
        return None
    return ended.error.message if ended.error else ended.status.value
