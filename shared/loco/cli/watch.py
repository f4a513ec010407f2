"""Live progress of a job: a table that redraws itself on a terminal, plain lines elsewhere.

loco watch 20261122-143722-4f9a2c
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loco.cli.progress import bar, in_words
from loco.cli.summary import STYLES, headline, outcome, stage_time
from loco.client.client import Client
from loco.contracts.figures import duration, sparkline
from loco.contracts.jobs import Job, JobEvent, StageStatus, Task
from loco.contracts.printable import one_line
from loco.contracts.program_events import Progress
from loco.contracts.stages import Stage

#: Seconds between two progress lines of a stage where nothing redraws.
LINE_SECONDS = 5.0
#: Seconds to wait for Ollama to follow a promotion, and between two looks.
SERVED_SECONDS = 10.0
_LOOK_SECONDS = 0.2

_REDRAWS_PER_SECOND = 4
#: Columns of a bar, and how many its line must have for that.
_BARS = ((20, 70), (8, 36), (0, 0))
_SIGNS = {
    StageStatus.SUCCEEDED: "✓",
    StageStatus.REUSED: "↺",
    StageStatus.RUNNING: "●",
    StageStatus.QUEUED: "○",
    StageStatus.PENDING: "○",
    StageStatus.FAILED: "✗",
    StageStatus.CANCELLED: "■",
}


class View(Protocol):
    """Something that shows a job's events."""

    def on_event(self, event: JobEvent) -> None:
        """Shows one event."""


def follow(client: Client, job_id: str, console: Console) -> Job:
    """Shows a job's progress from its start on until it has ended, and returns it then.

    A version that was promoted at its end is served by then, or the console says that it is not.

    Args:
        client: where the job runs.
        job_id: the job.
        console: a terminal gets the live table, anything else plain lines.
    """
    view, screen = _view(client, job_id, console)
    with screen:
        ended = client.wait(job_id, on_event=view.on_event)
    outcome = ended.promotion
    if outcome and outcome.promoted and not _is_served(client, ended.adapter, outcome.version):
        console.print(
            f"Version {outcome.version} is promoted, but {outcome.model}:latest in Ollama does "
            "not show it yet. The workers keep trying. `loco doctor` checks Ollama.",
            soft_wrap=True,
        )
    return ended


def _is_served(client: Client, adapter: str, number: int) -> bool:
    """Whether a promoted version is what `latest` is, waiting a little for it."""
    deadline = time.monotonic() + SERVED_SECONDS
    while True:
        version = next(iter(client.versions(adapter, after=number + 1, page_size=1)), None)
        if version is None or version.version != number or not version.promoted:
            return True  # something else was promoted meanwhile
        if version.served_at is not None:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)


def _view(
    client: Client, job_id: str, console: Console
) -> tuple[View, AbstractContextManager[object]]:
    if not console.is_terminal:
        return LineView(console), nullcontext()
    table = TableView(client, client.job(job_id))
    live = Live(
        console=console,
        get_renderable=table.renderable,
        refresh_per_second=_REDRAWS_PER_SECOND,
        transient=True,
    )
    return table, live


class TableView:
    """The job as a table: one row a stage, and the curve of its loss."""

    def __init__(self, client: Client, job: Job) -> None:
        self._client = client
        self._job = job
        self._progress: dict[Stage, Progress] = {}
        self._losses: dict[Stage, list[float]] = {}
        self._heard: dict[Stage, float] = {}
        self._log = ""

    def on_event(self, event: JobEvent) -> None:
        """Takes one event in; the next redraw shows it."""
        if event.type == "stage.log":
            self._log = str(event.data.get("message", ""))
        elif event.type != "stage.progress":
            self._job = self._client.job(self._job.id)
            if event.type == "stage.running" and event.stage is not None:
                # a new attempt starts its counts and its curve again
                self._progress.pop(event.stage, None)
                self._losses.pop(event.stage, None)
        elif event.stage is not None:
            progress = Progress.model_validate(event.data, extra="ignore")
            self._progress[event.stage] = progress
            self._heard[event.stage] = time.monotonic()
            if progress.loss is not None:
                self._losses.setdefault(event.stage, []).append(progress.loss)

    def renderable(self) -> RenderableType:
        """The table as it is now."""
        return _Fitted(self._screen)

    def _screen(self, console: Console, width: int) -> RenderableType:
        """The table for a screen so many columns wide: stage, state and time keep their width."""
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column()  # the one that shrinks
        kept = [
            (task.stage.value, state(task, console), self._time(task)) for task in self._job.stages
        ]
        left = width - sum(max(map(cell_len, column)) + 2 for column in zip(*kept, strict=True))
        for task, (stage, status, time_) in zip(self._job.stages, kept, strict=True):
            words = Text(one_line(self._words(task, left)), no_wrap=True, overflow="ellipsis")
            table.add_row(stage, Text(status, style=STYLES[task.status]), time_, words)
        log = Text(one_line(self._log), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(headline(self._job), table, log)

    def _time(self, task: Task) -> str:
        progress = self._progress.get(task.stage)
        if task.status is not StageStatus.RUNNING or progress is None:
            return stage_time(task)
        since = time.monotonic() - self._heard[task.stage]
        return duration((progress.elapsed_seconds or 0) + since)

    def _words(self, task: Task, width: int) -> str:
        if task.status.is_terminal or task.error is not None:
            return outcome(task)
        progress = self._progress.get(task.stage)
        if task.status is not StageStatus.RUNNING:
            return ""
        if progress is None:
            return "starting"
        parts = [
            bar(progress.percent, next((bars for bars, least in _BARS if width >= least), 0)),
            in_words(progress.model_copy(update={"percent": None})),
            sparkline(self._losses.get(task.stage, [])),
        ]
        return "  ".join(filter(None, parts))


class _Fitted:
    """Something that is drawn for the width it gets."""

    def __init__(self, draw: Callable[[Console, int], RenderableType]) -> None:
        self._draw = draw

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        yield self._draw(console, options.max_width)


def state(task: Task, console: Console) -> str:
    """A stage's state: a sign on a terminal with colours, else the word."""
    signs = console.is_terminal and not console.no_color and console.encoding.startswith("utf")
    return _SIGNS[task.status] if signs else task.status.value


class LineView:
    """The job as lines for a log file: each change, and progress every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: dict[Stage, datetime] = {}

    def on_event(self, event: JobEvent) -> None:
        """Prints what is worth a line."""
        if event.type == "snapshot" or event.type.endswith(".queued"):
            return
        if event.stage is None:
            self._print("job", event.type.removeprefix("job."))
        elif event.type == "stage.progress":
            last = self._printed.get(event.stage)
            if last is None or (event.at - last).total_seconds() >= LINE_SECONDS:
                self._printed[event.stage] = event.at
                self._print(
                    event.stage, in_words(Progress.model_validate(event.data, extra="ignore"))
                )
        elif event.type == "stage.log":
            self._print(event.stage, str(event.data.get("message", "")))
        else:
            self._printed.pop(event.stage, None)
            self._print(event.stage, " ".join(filter(None, (_kind(event), _details(event)))))

    def _print(self, subject: str, words: str) -> None:
        if words:
            self._console.print(f"{subject:<9} {one_line(words)}", markup=False, soft_wrap=True)


def _kind(event: JobEvent) -> str:
    return event.type.rpartition(".")[2]


def _details(event: JobEvent) -> str:
    data = event.data
    if event.type == "stage.checkpoint":
        return f"at step {data.get('step')}"
    if event.type.startswith("version."):
        reason = data.get("reason")
        return f"version {data.get('version')}" + (f" ({reason})" if reason else "")
    error = data.get("error")
    if isinstance(error, dict):
        return f"({error.get('message')})"
    if data.get("reused_from"):
        return f"from {data['reused_from']}"
    if event.type == "stage.running" and data.get("worker"):
        return f"on {data['worker']}, attempt {data.get('attempt')}"
    return ""
