"""The frame of a stage program: arguments, events, stop requests, watchdog, result file, exit code.

Each stage file ends in `sys.exit(main(Stage.TRAIN, run))` and then runs by hand:

    python -m loco_trainer.train --spec adapters/math/runs/JOB/train/a1/spec.json --out /tmp/replay

Standard output carries one event a line (see `loco.contracts.program_events`); everything libraries print goes to
standard error. Exit code 0: result.json is complete; 1: an error event said why; 75: stopped on
request, resumable.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from loco.contracts.disk import disk_full, is_disk_full
from loco.contracts.errors import InvalidRequest, LocoError, invalid
from loco.contracts.files import write_text
from loco.contracts.program_events import (
    CheckpointEvent,
    ErrorEvent,
    LogEvent,
    Progress,
    ProgressEvent,
    StageEvent,
)
from loco.contracts.specs import STAGE_SPECS, Inputs, StageResult, StageRun
from loco.contracts.stages import Stage
from loco.stage.deathsig import die_with_parent

EXIT_FAILED = 1
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command again goes on
EXIT_ORPHANED = 70

#: At most so many progress events a second leave a program.
PROGRESS_PER_SECOND = 10


class Stopped(Exception):
    """The program was asked to stop and has left a state to resume from."""


class Emitter:
    """What a stage's `run` uses to speak and to hear that it should stop."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last_progress = 0.0
        self._started = time.monotonic()

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for a stop: leave a checkpoint, then `check_stop`."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Asks the stage to stop at the next safe place."""
        self._stop.set()

    def check_stop(self) -> None:
        """Raises `Stopped` when a stop was asked for."""
        if self.stopping:
            raise Stopped

    def progress(self, *, last: bool = False, **fields: Any) -> None:
        """Sends a `Progress`; drops it when the last one left under 0.1 s ago, unless `last`."""
        now = time.monotonic()
        if not last and now - self._last_progress < 1 / PROGRESS_PER_SECOND:
            return
        self._last_progress = now
        fields.setdefault("elapsed_seconds", round(now - self._started, 3))
        self._send(ProgressEvent(progress=Progress(**fields)))

    def log(self, message: str) -> None:
        """Sends a line for people."""
        self._send(LogEvent(message=message))

    def checkpoint(self, path: Path, *, step: int) -> None:
        """Says that a checkpoint folder is complete on disk."""
        self._send(CheckpointEvent(path=str(path.absolute()), step=step))

    def error(self, error: LocoError) -> None:
        """Says why the program fails."""
        self._send(
            ErrorEvent(error=error.body, user_fault=error.user_fault, retryable=error.retryable)
        )

    def _send(self, event: StageEvent) -> None:
        with self._lock:
            self._stream.write(event.model_dump_json(exclude_none=True) + "\n")
            self._stream.flush()


Run = Callable[[Any, Inputs, Path, Emitter], StageResult]


def main(stage: Stage, run: Run, argv: list[str] | None = None) -> int:
    """Runs one stage from the command line and returns its exit code."""
    arguments = _parse(stage, argv)
    events = _take_stdout()
    emit = Emitter(events)
    signal.signal(signal.SIGTERM, lambda *_: emit.request_stop())
    signal.signal(signal.SIGINT, lambda *_: emit.request_stop())
    if arguments.supervised:
        die_with_parent(arguments.supervised, code=EXIT_ORPHANED)
        threading.Thread(
            target=_listen, args=(emit, arguments.watchdog_seconds), daemon=True
        ).start()
    out: Path = arguments.out.absolute()
    started = time.monotonic()
    try:
        spec, inputs = _load(stage, arguments.spec)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "environment.json", json.dumps(environment(), indent=2) + "\n")
        result = run(spec, inputs, out, emit)
        result = result.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
        write_text(out / "result.json", result.model_dump_json(indent=2) + "\n")
    except Stopped:
        emit.log("stopped on request")
        return EXIT_STOPPED
    except LocoError as error:
        emit.error(error)
        _tell(error)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 (the boundary: whatever it is, the user is told)
        emit.error(_as_ours(stage, error, out))
        _tell(error)
        return EXIT_FAILED
    return 0


def _as_ours(stage: Stage, error: Exception, out: Path) -> LocoError:
    if is_disk_full(error):
        return disk_full(out)
    return LocoError(
        f"{stage} failed: {type(error).__name__}: {error}",
        hint="The attempt's log has the traceback. Please report it with spec.json.",
    )


def _tell(error: Exception) -> None:
    """Writes an error to the log, where there is room: it has been reported already."""
    with suppress(OSError):
        if isinstance(error, InvalidRequest):
            sys.stderr.write(_in_words(error))  # what was asked is at fault, no line of ours
        else:
            traceback.print_exception(error)


def _in_words(error: LocoError) -> str:
    return "\n".join(line for line in (f"{error.code}: {error.message}", error.hint) if line) + "\n"


def environment() -> dict[str, Any]:
    """What the attempt ran on: Python, machine, package versions, GPU settings, git commit."""
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {
        "python": sys.version.split()[0],
        "machine": " ".join(os.uname()),
        "cpus": os.cpu_count(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "gpu": _gpu_of_driver(),
        "git_commit": _git_commit(),
        "packages": dict(sorted(packages.items())),
    }


def _gpu_of_driver() -> str | None:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else None


def _git_commit() -> str | None:
    """The checked-out commit, read without running git (it may not be installed)."""
    for folder in Path(__file__).resolve().parents:
        head = folder / ".git" / "HEAD"
        if head.is_file():
            content = head.read_text().strip()
            if not content.startswith("ref: "):
                return content
            ref = folder / ".git" / content.removeprefix("ref: ")
            return ref.read_text().strip() if ref.is_file() else None
    return None


def _parse(stage: Stage, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {stage.program}", description=f"Runs stage {stage} by hand."
    )
    parser.add_argument("--spec", type=Path, required=True, help="spec.json of an attempt")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--supervised",
        type=int,
        metavar="PID",
        help="parent to end with; signs of life and stop requests come on standard input",
    )
    parser.add_argument(
        "--watchdog-seconds",
        type=float,
        default=45,
        help="exit after this long without a sign of life",
    )
    return parser.parse_args(argv)


def _load(stage: Stage, path: Path) -> tuple[Any, Inputs]:
    try:
        document = StageRun.model_validate_json(path.read_bytes())
        if document.stage is not stage:
            raise LocoError(
                f"{path} is a spec of stage {document.stage}, this is {stage}.",
                hint=f"python -m {document.stage.program} --spec {path} --out DIR",
            )
        return STAGE_SPECS[stage].model_validate(document.spec), document.inputs
    except ValidationError as error:
        raise invalid(error, where=str(path)) from error
    except FileNotFoundError as error:
        raise LocoError(f"No spec file {path}.") from error


def _take_stdout() -> TextIO:
    """Keeps standard output for events and sends everything else that prints there to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _listen(emit: Emitter, watchdog_seconds: float) -> None:
    """Reads `tick` and `stop` lines; a silent or closed pipe ends the process.

    The lease may be gone by then, so nothing may be written any more: no clean-up on purpose.
    """
    last = time.monotonic()

    def watch() -> None:
        while time.monotonic() - last < watchdog_seconds:
            time.sleep(min(1.0, watchdog_seconds / 10))
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin:
        last = time.monotonic()
        if line.strip() == "stop":
            emit.request_stop()
    os._exit(EXIT_ORPHANED)
