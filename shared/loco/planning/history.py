"""What the lab's own runs say: how long stages took, and how long rows turned out to be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from pydantic import ValidationError

from loco.contracts.jobs import Job, StageStatus
from loco.contracts.plans import Device, Lengths, PlanAttempt, Shape
from loco.contracts.results import TrainResult
from loco.contracts.specs import JobSpec, PrepareSpec, StageResult, TrainSpec
from loco.contracts.stages import Stage
from loco.ledger.reader import LedgerReader
from loco.planning.time import start_seconds, step_seconds
from loco.planning.ways import Way, kind_of

#: Newest jobs that are looked at.
_JOBS = 100
#: Newest runs that a figure is the median of.
_RUNS = 5
#: Newest plans that are told to the next run.
_TRIED = 50

_ResultT = TypeVar("_ResultT", bound=StageResult)


@dataclass(frozen=True)
class Trained:
    """An earlier training run."""

    job_id: str
    spec: TrainSpec
    result: TrainResult


@dataclass(frozen=True)
class Correction:
    """From the model's seconds to measured ones."""

    #: Factor of a step's seconds, and of those before the steps.
    step: float = 1.0
    start: float = 1.0
    #: Seconds after the last step, which the model leaves out: validation, writing the adapter.
    end: float = 0.0
    #: Runs they are the median of.
    runs: int = 0


class History:
    """The newest jobs of a ledger, newest first."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    @classmethod
    def of(cls, ledger: LedgerReader) -> "History":
        """The history a ledger keeps."""
        jobs, _ = ledger.jobs(limit=_JOBS)
        return cls(jobs)

    def correction(self, way: Way, base_model: str, shape: Shape, device: Device) -> Correction:
        """How the model erred on runs like this: same base, device, engine; like plans first."""
        runs = [
            run
            for run in self._trained(base_model)
            if run.result.device == device.name and run.result.plan.engine == way.engine
        ]
        alike = [run for run in runs if kind_of(run.result.plan) == kind_of(way)]
        chosen = (alike or runs)[:_RUNS]
        factors = [_factors(run, shape, device) for run in chosen]
        if not factors:
            return Correction()
        steps, starts, ends = zip(*factors, strict=True)
        return Correction(
            step=median(steps), start=median(starts), end=median(ends), runs=len(factors)
        )

    def tried(self, base_model: str) -> tuple[PlanAttempt, ...]:
        """The plans that runs of a base model tried, newest first: to their end, or all in vain."""
        found: list[PlanAttempt] = []
        for job in self._jobs:
            task = job.stage(Stage.TRAIN)
            if task is None or job.spec.train.base_model.name != base_model:
                continue
            if task.status is StageStatus.FAILED and task.progress is not None:
                found += reversed(task.progress.tried or ())
            elif run := _trained(job):
                found += reversed(run.result.attempts)
        return tuple(found[:_TRIED])

    def seconds(self, stage: Stage, spec: JobSpec, *, device: str | None) -> tuple[float, int]:
        """Median seconds a stage took for the same adapter, base and size; and of how many runs.

        Args:
            stage: the stage.
            spec: what is planned.
            device: name of what train and export run on (`cpu` is one); None: any.
        """
        found: list[float] = []
        for job in self._jobs:
            task = job.stage(stage)
            if task is None or task.status is not StageStatus.SUCCEEDED or not task.result:
                continue
            where = task.result.get("device")
            if device is not None and where not in (None, device):
                continue
            if _size(job.spec, stage) == _size(spec, stage):
                found.append(float(task.result["seconds"]))
        newest = found[:_RUNS]
        return (median(newest), len(newest)) if newest else (0.0, 0)

    def lengths(self, spec: JobSpec) -> tuple[Lengths, int, str] | None:
        """How long rows of the same source were when they were last trained on.

        Returns:
            Their lengths, the conversations they were made of, and in which job.
        """
        for job in self._jobs:
            if job.adapter != spec.adapter or not _same_rows(job.spec.prepare, spec.prepare):
                continue
            result = _result(job, TrainResult)
            same_base = job.spec.train.base_model.name == spec.train.base_model.name
            if result is not None and same_base:
                return result.lengths, result.conversations or result.lengths.rows, job.id
        return None

    def prepared(self, spec: JobSpec) -> Job | None:
        """The newest job of the adapter that prepared rows of the same source."""
        for job in self._jobs:
            task = job.stage(Stage.PREPARE)
            if (
                job.adapter == spec.adapter
                and task is not None
                and task.status.is_committed
                and _same_rows(job.spec.prepare, spec.prepare)
            ):
                return job
        return None

    def _trained(self, base_model: str) -> list[Trained]:
        found = (_trained(j) for j in self._jobs if j.spec.train.base_model.name == base_model)
        return [run for run in found if run is not None]


def _trained(job: Job) -> Trained | None:
    """A job's own run of train; a reused result is that of another job."""
    task = job.stage(Stage.TRAIN)
    if task is None or task.status is not StageStatus.SUCCEEDED:
        return None
    result = _result(job, TrainResult)
    if result is None or result.step_seconds <= 0:
        return None
    return Trained(job.id, job.spec.train, result)


def _factors(run: Trained, shape: Shape, device: Device) -> tuple[float, float, float]:
    """Measured seconds over the model's, of a step and of all before its end; seconds at the end."""
    result = run.result
    way = Way.of(result.plan)
    step = step_seconds(way, run.spec, shape, result.lengths, device)
    start = start_seconds(way, shape, device) + step
    # the first step counts in both start and train seconds
    end = result.seconds - result.start_seconds - result.train_seconds + result.step_seconds
    return result.step_seconds / step, result.start_seconds / start, max(0.0, end)


def _same_rows(a: PrepareSpec, b: PrepareSpec) -> bool:
    """Whether two specs draw rows of the same kind; how many and which seed does not matter."""
    return a.source == b.source


def _size(spec: JobSpec, stage: Stage) -> tuple[Any, ...]:
    """What a stage's time depends on most."""
    common = (spec.adapter, spec.train.base_model.name)
    parts: dict[Stage, Callable[[], tuple[Any, ...]]] = {
        Stage.PREPARE: lambda: (spec.prepare.source, spec.prepare.examples),
        Stage.EXPORT: lambda: (spec.export.quantization,),
        Stage.EVAL: lambda: (spec.eval,),
    }
    return (*common, *parts.get(stage, tuple)())


def _result(job: Job, model: type[_ResultT]) -> _ResultT | None:
    """A job's committed result of stage train; None when there is none in the present form."""
    task = job.stage(Stage.TRAIN)
    if task is None or not task.status.is_committed or task.result is None:
        return None
    try:
        return model.model_validate(task.result, extra="ignore")
    except ValidationError:  # of an older release
        return None
