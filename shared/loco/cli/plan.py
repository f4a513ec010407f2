"""`loco plan`: how a job would be trained and what it would take, before anything is spent."""

import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from loco.cli import completion
from loco.cli.adapters import pushed_first
from loco.cli.console import client, note, show, show_json
from loco.cli.overrides import parse_assignments
from loco.client.client import Client
from loco.contracts.errors import InvalidRequest, LocoError, OutOfMemory
from loco.contracts.figures import duration
from loco.contracts.plans import Plan
from loco.contracts.previews import Alternative, Preview, StageTime
from loco.contracts.requests import DEFAULT_PROFILE
from loco.contracts.stages import Stage
from loco.planning.ways import described
from loco.recipes.resolve import merge

#: Columns of the page, and of the labels at its left.
_WIDTH = 80
_LABEL = 10
_BAR = 30
#: A job that takes longer is warned of.
_LONG_SECONDS = 3600
#: Less is not worth a word, 10^9 bytes.
_DOWNLOAD_GB = 0.05


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(plan)


def plan(
    context: typer.Context,
    adapter: Annotated[
        str,
        typer.Argument(
            help="Name of the adapter, see `loco adapters`.", autocompletion=completion.adapters
        ),
    ],
    *,
    profile: Annotated[
        str,
        typer.Option(
            "--profile", help="Profile of the recipe.", autocompletion=completion.profiles
        ),
    ] = DEFAULT_PROFILE,
    base_model: Annotated[
        str | None, typer.Option(help="A base model from adapters/base_models.yaml.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Field of a stage, like train.epochs=5."),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="Plan for a GPU with this much memory (GB) instead of the worker's."),
    ] = None,
    gpu_name: Annotated[
        str | None, typer.Option(help='Name of that GPU, like "RTX 3070", for its speed.')
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Show how a job would train, its memory and its time. Starts nothing."""
    if gpu_name is not None and gpu_memory is None:
        raise InvalidRequest(
            "--gpu-name needs --gpu-memory: cards with the same name come with different "
            "amounts of memory.",
            param="--gpu-memory",
            hint="Add the memory in GB, like --gpu-memory 8.",
        )
    request: dict[str, Any] = {"profile": profile}
    if base_model is not None:
        request["base_model"] = base_model
    if gpu_memory is not None:
        request["device"] = {"memory_gb": gpu_memory} | ({"name": gpu_name} if gpu_name else {})
    with client(context) as loco, pushed_first(adapter):
        found = loco.plan(adapter, **merge(request, parse_assignments(assignments or [])))
    if as_json:
        show_json(found)
        return
    for line in page(found):
        show(line)


def warn(loco: Client, adapter: str, **request: Any) -> None:
    """Says before a job is sent that it takes long or does not fit; what else is wrong, the job says itself.

    Args:
        loco: of the server.
        adapter: that is to be built.
        request: as for `Client.submit`.
    """
    if Stage.TRAIN not in (request.get("stages") or Stage):
        return
    try:
        found = loco.plan(adapter, **request)
    except OutOfMemory as error:
        note(f"Warning: {error.message} {error.hint or ''}".rstrip())
        return
    except LocoError:  # a plan is a courtesy: no worker yet, too many plans, an older server
        return
    if found.total_seconds > _LONG_SECONDS or not _has_margin(found):
        note(f"{verdict(found)} `loco plan {adapter}` shows the details.")


def verdict(found: Preview) -> str:
    """Whether it fits, how long it takes, and what it downloads, in a line."""
    unknown = [s.stage.value for s in found.stages if s.seconds is None]
    words = (
        "Fits." if _has_margin(found) else "Just fits, with no margin. It may run out of memory."
    )
    if len(unknown) == len(found.stages):
        words += " The time is not known yet."
    else:
        words += f" About {_about(found.total_seconds)}"
        words += f" plus {_listed(unknown)}, not known yet." if unknown else "."
        if all(stage.basis != "runs" for stage in found.stages):
            words += " The time is computed: nothing like it has run here yet."
    downloads = sum(need.download_gb for need in found.needs)
    if downloads >= _DOWNLOAD_GB:
        words += f" Downloads {downloads:.1f} GB, so the server must reach the model hub."
    return words


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _about(seconds: float) -> str:
    """Without seconds that nobody can know: `40 s`, `12 min`, `3 h 07 min`."""
    return f"{seconds / 60:.0f} min" if 60 <= seconds < 3570 else duration(seconds)


def _has_margin(found: Preview) -> bool:
    return found.memory.peak_gb + found.margin_gb <= found.device.free_gb


def page(found: Preview) -> Iterator[Text]:
    """The plan as lines of at most 80 columns, the verdict first.

    `~` marks what is computed, also from earlier runs: the line says from how many. What has none is given
    (the request, the device).
    """
    rows = found.plan.micro_batch * found.plan.accumulation
    for line in textwrap.wrap(verdict(found), _WIDTH):
        yield Text(line, style="bold")
    yield Text(
        f"{found.adapter} ({found.profile}): {found.base_model} on {found.device.name}, "
        f"{found.total_steps} steps of {rows} rows"
    )
    yield Text()
    yield from _lines("plan", ", ".join(described(found.plan, rows)))
    yield from _lines("", found.plan.why)
    yield from _memory(found)
    yield from _lines("rows", _rows(found))
    yield from _lines("time", _time(found))
    needs = (
        f"{n.stage} ~{n.ram_gb:.1f} GB RAM, ~{n.disk_gb:.2f} GB disk"
        + (f", ~{n.download_gb:.1f} GB to download" if n.download_gb else "")
        for n in found.needs
    )
    for label, text in zip(("needs", "", ""), needs, strict=False):
        yield from _lines(label, text)
    if found.alternatives:
        yield Text()
        yield Text(f"{'instead':<30}{'~GB':>7}{'~step':>10}{'~train':>14}{'':>3}fits", style="bold")
        yield _row("this plan", found.plan, times=None, fits=True)
        for other in found.alternatives:
            yield from _alternative(other, rows)
    if found.notes:
        yield Text()
    for text in found.notes:
        yield from _lines("note", text)


def _lines(label: str, text: str) -> Iterator[Text]:
    for number, line in enumerate(textwrap.wrap(text, _WIDTH - _LABEL)):
        yield Text.assemble((f"{label if number == 0 else '':<{_LABEL}}", "bold"), line)


def _memory(found: Preview) -> Iterator[Text]:
    memory, free = found.memory, found.device.free_gb
    filled = min(_BAR, round(_BAR * memory.peak_gb / max(free, 1e-9)))
    kept = min(_BAR - filled, round(_BAR * found.margin_gb / max(free, 1e-9)))
    bar = "█" * filled + "▒" * kept + "░" * (_BAR - filled - kept)
    what = "GPU" if found.device.is_gpu else "RAM"
    learned = f", learned from runs {memory.learned_gb:+.2f}" if memory.learned_gb else ""
    yield from _lines("memory", f"{bar} ~{memory.peak_gb:.1f} of {free:.1f} GB free ({what})")
    yield from _lines(
        "",
        f"weights ~{memory.weights_gb:.1f}, adapter ~{memory.adapter_gb:.2f}, activations "
        f"~{memory.activations_gb:.2f}, logits ~{memory.logits_gb:.2f}, workspace "
        f"~{memory.workspace_gb:.2f}{learned}; margin ~{found.margin_gb:.1f} ▒",
    )


def _rows(found: Preview) -> str:
    lengths = found.lengths
    return (
        f"{lengths.rows} of ~{lengths.mean:.0f} tokens on average, 95 % up to ~{lengths.p95}, "
        f"longest ~{lengths.longest}; from {found.lengths_from}"
    )


def _time(found: Preview) -> str:
    known = [s for s in found.stages if s.seconds is not None]
    unknown = [s.stage.value for s in found.stages if s.seconds is None]
    words = f"~{duration(found.total_seconds)}: " + ", ".join(_stage(s) for s in known)
    if unknown:
        words += f"; not known yet: {', '.join(unknown)}"
    return words


def _stage(time: StageTime) -> str:
    words = f"{time.stage} ~{duration(time.seconds or 0)}"
    return f"{words} (from {_runs(time.runs)})" if time.basis == "runs" else words


def _runs(count: int) -> str:
    return "1 earlier run" if count == 1 else f"{count} earlier runs"


def _alternative(other: Alternative, rows: int) -> Iterator[Text]:
    yield _row(other.name, other.plan, times=other.times, fits=other.fits)
    for line in textwrap.wrap(", ".join(described(other.plan, rows)), _WIDTH - 2):
        yield Text(f"  {line}", style="dim")


def _row(name: str, shown: Plan, *, times: float | None, fits: bool) -> Text:
    ratio = "" if times is None else f" ~{times:.1f} x"
    step = f"{shown.step_seconds:.2f} s"
    return Text(
        f"{name:<30}{shown.memory_gb:>7.1f}{step:>10}{duration(shown.train_seconds):>14}"
        f"{'':>3}{'yes' if fits else 'no':<4}{ratio}"
    )
