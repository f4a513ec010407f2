"""The product's own stage programs, run by hand within the time a study may take."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loco.contracts.specs import Inputs, StageRun
from loco.contracts.stages import Queue, Stage

ROOT = Path(__file__).resolve().parents[3]
#: Seconds a program has to leave after it was asked to stop.
GRACE_SECONDS = 30.0
_LOOK_SECONDS = 0.2


class Skipped(Exception):
    """Something was left out; the message says what and why."""


class Budget:
    """The time a study may take."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        #: Set where the study ends before its time.
        self.over = threading.Event()

    @property
    def seconds_left(self) -> float:
        """Seconds until the study has to end; infinite without a limit."""
        if self.over.is_set():
            return 0.0
        return float("inf") if self._end is None else max(0.0, self._end - time.monotonic())

    def require(self, seconds: float, what: str) -> None:
        """Raises `Skipped` when something that takes so many seconds no longer fits."""
        if self.seconds_left < seconds:
            raise Skipped(
                f"{what}: left out, it takes about {seconds:.0f} s and {self.seconds_left:.0f} s are left"
            )


def run_program(
    stage: Stage,
    spec: BaseModel,
    inputs: Inputs,
    folder: Path,
    budget: Budget,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs a stage program to its end and returns its result.

    Args:
        stage: which.
        spec: its part of a job's spec.
        inputs: what it may read.
        folder: where it writes, with its spec, events and log.
        budget: it is stopped when the time is up.
        environment: variables of its own.

    Raises:
        Skipped: time ran out; training left a checkpoint.
        RuntimeError: it failed; its log is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "spec.json"
    run.write_text(
        StageRun(stage=stage, spec=spec.model_dump(), inputs=inputs).model_dump_json(indent=2)
    )
    command = [_python(stage), "-m", stage.program, "--spec", str(run), "--out", str(folder)]
    events, log = folder / "events.jsonl", folder / "log.txt"
    with (
        events.open("w") as output,
        log.open("w") as said,
        subprocess.Popen(
            command, stdout=output, stderr=said, env=own_environment(environment)
        ) as child,
    ):
        try:
            code = _ended(child, budget)
        except BaseException:
            child.kill()
            raise
    if code is None:
        raise Skipped(f"{stage}: stopped, the time is up; it goes on from {folder}")
    if code != 0:
        last = (events.read_text().splitlines() or ["no event"])[-1]
        raise RuntimeError(f"{stage} ended with {code}: {last}; see {log}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def own_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, with the packages of this checkout before all others."""
    paths = f"{ROOT / 'shared'}:{ROOT / 'services'}:{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": paths, **(more or {})}


def _ended(child: "subprocess.Popen[bytes]", budget: Budget) -> int | None:
    """The exit code of a program; None: it was stopped because the time is up."""
    while budget.seconds_left > 0:
        try:
            return child.wait(min(_LOOK_SECONDS, max(0.01, budget.seconds_left)))
        except subprocess.TimeoutExpired:
            continue
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
    return None


def _python(stage: Stage) -> str:
    """This Python; for a stage of the runtime venv that one where this one lacks its packages."""
    runtime = ROOT / ".venv" / "bin" / "python"
    if stage.queue is Queue.CPU and find_spec("ollama") is None and runtime.is_file():
        return str(runtime)
    return sys.executable
