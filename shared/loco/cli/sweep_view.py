"""How a sweep looks: its table, redrawn on a terminal while it runs, and lines on a pipe."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loco.cli.summary import STYLES
from loco.client.client import Client
from loco.contracts.figures import duration
from loco.contracts.jobs import JobStatus
from loco.contracts.printable import one_line
from loco.contracts.sweeps import PointStatus, RankBy, Sweep, SweepPoint

#: A running training is told of on a pipe each time it is so much further, percent.
_STEP_PERCENT = 25
_POINT_STYLES = STYLES | {"stopped": "yellow"}


def follow(client: Client, sweep_id: str, console: Console) -> Sweep:
    """Shows a sweep's progress until it has ended, and returns it then.

    Args:
        client: where it runs.
        sweep_id: the sweep.
        console: a terminal gets the live table, anything else plain lines.
    """
    if not console.is_terminal:
        return client.wait_sweep(sweep_id, on_look=Lines(console).take)
    with Live(console=console, transient=True) as live:
        return client.wait_sweep(sweep_id, on_look=lambda sweep: live.update(render(sweep)))


def render(sweep: Sweep) -> RenderableType:
    """A sweep: its state, a row a point, and what follows."""
    parts: list[RenderableType] = [headline(sweep), "", points_table(sweep)]
    told = [f"Point {p.number}: {one_line(p.reason)}" for p in sweep.points if p.reason]
    if told:
        parts += ["", *map(Text, told)]
    if sweep.best is not None:
        chosen, by = sweep.points[sweep.best - 1], sweep.rank_by.replace("_", " ")
        parts += ["", Text(f"Best by {by}: point {chosen.number} ({in_words(chosen.overrides)}).")]
    if sweep.final_job is not None and sweep.final_status is not None:
        parts.append(
            Text(f"Job {sweep.final_job} exports, registers and measures it: {sweep.final_status}.")
        )
    if sweep.error is not None:
        parts += ["", Text(f"error: {sweep.error.message}", style="bold red")]
        parts += [Text(f"fix: {sweep.error.hint}")] if sweep.error.hint else []
    return Group(*parts)


def headline(sweep: Sweep) -> Text:
    """One line: the sweep, what it builds, where it is."""
    text = Text.assemble(
        ("Sweep ", "bold"),
        (sweep.id, "bold"),
        f"  {sweep.adapter} ({sweep.profile})  ",
        (sweep.status.value, STYLES[sweep.status]),
    )
    if sweep.is_terminal:
        if sweep.finished_at is not None:
            text.append(f" in {duration((sweep.finished_at - sweep.created_at).total_seconds())}")
    elif sweep.cancel_requested:
        text.append(", cancel requested", style="yellow")
    else:
        text.append(f", {doing(sweep)}")
    return text


def doing(sweep: Sweep) -> str:
    """What a sweep that runs is at."""
    if sweep.final_job is not None:
        return f"builds point {sweep.best}"
    if sweep.prepare_status is not JobStatus.SUCCEEDED:
        return f"prepare {sweep.prepare_status or 'pending'}"
    ended = sum(point.status.is_terminal for point in sweep.points)
    return f"{ended} of {sweep.size} trained"


def points_table(sweep: Sweep) -> Table:
    """A row a point. What differs gives way where the terminal is narrow; the rest keeps its width."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", justify="right", no_wrap=True)
    for field in sweep.points[0].overrides:
        table.add_column(_short(field), justify="right", overflow="fold")
    table.add_column("state", no_wrap=True)
    by_validation = sweep.rank_by is RankBy.VALIDATION_LOSS
    table.add_column(
        "valid. loss" if by_validation else "train loss", justify="right", no_wrap=True
    )
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("job", no_wrap=True)
    for point in sweep.points:
        loss = point.validation_loss if by_validation else point.train_loss
        table.add_row(
            str(point.number),
            *(_value(value) for value in point.overrides.values()),
            Text(state(point), style=_POINT_STYLES[point.status]),
            "" if loss is None else f"{loss:.4f}",
            "" if point.rank is None else str(point.rank),
            point.job or "",
            style="bold" if point.number == sweep.best else "",
        )
    return table


def state(point: SweepPoint) -> str:
    """A point's state in a word, with how far it is while it trains."""
    if point.status is PointStatus.RUNNING and point.percent is not None:
        return f"running {point.percent:.0f} %"
    return point.status.value


def in_words(overrides: Mapping[str, Any]) -> str:
    """The fields a point sets."""
    return ", ".join(f"{field}={_value(value)}" for field, value in overrides.items())


class Lines:
    """A sweep as lines for a log file: each change of the sweep and its points."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, str] = {}

    def take(self, sweep: Sweep) -> None:
        """Prints what changed since the last look."""
        for point in sweep.points:
            quarter = int((point.percent or 0) // _STEP_PERCENT) * _STEP_PERCENT
            running = point.status is PointStatus.RUNNING
            key = f"{point.status}{quarter if running else ''}"
            if point.status not in (PointStatus.PENDING, PointStatus.QUEUED):
                self._tell(f"point {point.number}", key, _line(point))
        about = sweep.status.value if sweep.is_terminal else doing(sweep)
        self._tell("sweep", about, about)

    def _tell(self, subject: str, key: str, words: str) -> None:
        if self._told.get(subject) != key:
            self._told[subject] = key
            self._console.print(f"{subject:<9} {one_line(words)}", markup=False, soft_wrap=True)


def _line(point: SweepPoint) -> str:
    parts = [f"{in_words(point.overrides)}: {state(point)}"]
    if point.validation_loss is not None:
        parts.append(f"validation loss {point.validation_loss:.4f}")
    if point.train_loss is not None:
        parts.append(f"train loss {point.train_loss:.4f}")
    return ", ".join(parts) + (f" ({point.reason})" if point.reason else "")


def _short(field: str) -> str:
    return field.removeprefix("train.")


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else one_line(str(value))
