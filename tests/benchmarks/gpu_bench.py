"""What the parts of a GPU measurement share: the ground, the journal, the time left, the rows."""

import json
import re
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_ground import Ground
from gpu_journal import Journal
from gpu_stages import StageOutcome, run_stage
from gpu_within import Within

from loco.contracts.specs import TrainSpec
from loco.contracts.stages import Stage

#: Under so many seconds a child is not worth starting.
_LEAST_SECONDS = 20.0


class OutOfTime(Exception):
    """The part's time budget is used up; what is left out is named."""


class Bench:
    """One call of the benchmark."""

    def __init__(self, ground: Ground, journal: Journal, *, budget: float, total: float) -> None:
        self.ground = ground
        self.journal = journal
        self._budget = budget
        self._end = time.monotonic() + total
        self._deadline = self._end
        self._count = 0
        self.within = Within(ground)

    def begin(self) -> None:
        """Starts a part's time."""
        self._deadline = min(time.monotonic() + self._budget, self._end)

    @property
    def left(self) -> float:
        """Seconds left of the part's time."""
        return self._deadline - time.monotonic()

    def stage(self, stage: Stage, spec: Any, name: str, **options: Any) -> StageOutcome:
        """Runs a stage program within the part's time.

        Raises:
            OutOfTime: there is none left.
        """
        folder = self._folder(name)
        return run_stage(self.ground, stage, spec, name, folder, limit=self.left, **options)

    def _folder(self, name: str) -> str:
        if self.left < _LEAST_SECONDS:
            raise OutOfTime(name)
        self._count += 1
        words = re.sub(r"[^A-Za-z0-9.]+", "-", name)
        return f"{time.strftime('%H%M%S')}-{self._count:02}-{words}"

    def train(self, spec: TrainSpec, name: str, rows: Path, **options: Any) -> StageOutcome:
        """Runs stage train on a file of rows, as a program of its own."""
        files = {"prepare/training_data.jsonl": rows}
        return self.stage(Stage.TRAIN, spec, name, files=files, **options)

    def train_within(self, spec: TrainSpec, name: str, rows: Path, **options: Any) -> StageOutcome:
        """Runs stage train in the process that earlier such runs left, where the engine can.

        unsloth patches libraries when it is imported: it gets a program of its own.
        """
        if spec.engine == "unsloth":
            return self.train(spec, name, rows, **options)
        files = {"prepare/training_data.jsonl": rows}
        return self.within.train(spec, name, self._folder(name), files, **options)

    @cached_property
    def prepared(self) -> StageOutcome:
        """The recipe's rows.

        Raises:
            SystemExit: they cannot be prepared; says why.
        """
        run = self.stage(Stage.PREPARE, self.ground.prepare_spec(), "prepare")
        if not run.ok:
            raise SystemExit(
                f"Stage prepare failed: {run.error}. Without a hub, give GSM8K's train.jsonl: "
                "--gsm8k FILE."
            )
        return run

    @property
    def rows(self) -> Path:
        """The recipe's rows as a file."""
        return self.prepared.out / "training_data.jsonl"

    @cached_property
    def ceilings(self) -> dict[str, Any]:
        """What the machine can do at most, see gpu_ceilings.py; measured in a process of its own."""
        command = [sys.executable, str(Path(__file__).with_name("gpu_ceilings.py"))]
        said = subprocess.run(
            [*command, str(self.ground.work)], check=True, stdout=subprocess.PIPE, text=True
        )
        measured: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
        return measured

    def failed(self, part: str, run: StageOutcome) -> bool:
        """Notes a run that did not end well."""
        if not run.ok:
            self.journal.put(part, run.name, error=run.error)
        return not run.ok

    def floor_seconds(self, tokens: float) -> float:
        """Least seconds of training on so many tokens.

        Forward and backward pass through frozen weights are 2 operations a parameter and token
        each: 4 * parameters * tokens over the measured rate of matrix products.
        """
        return 4 * self.ground.parameters * tokens / float(self.ceilings["matmul_per_second"])


def train_figures(run: StageOutcome) -> dict[str, Any]:
    """What a run of stage train says about speed and memory."""
    result = run.result
    return {
        "plan": result["plan"],
        "start_seconds": result["start_seconds"],
        "steps_seconds": result["train_seconds"],
        "step_seconds": result["step_seconds"],
        "seconds": run.seconds,
        "peak_gb": result["peak_gpu_memory_gb"],
        "predicted_gb": result["plan"]["memory_gb"],
        "losses": [step["loss"] for step in result["log"]],
    }
