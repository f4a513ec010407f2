"""What the lab's own runs say: how long stages took, how long rows are, how the base answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from pydantic import ValidationError

from loco.contracts.evaluation import Baseline, Role
from loco.contracts.jobs import Job, StageStatus
from loco.contracts.plans import Device, Lengths, PlanAttempt, Shape
from loco.contracts.results import (
    Comparison,
    EvalResult,
    HeldBackRows,
    PrepareResult,
    Score,
    TrainResult,
)
from loco.contracts.sources import ArithmeticSource, GivenSource, ReasoningGymSource, SelfSource
from loco.contracts.specs import JobSpec, PrepareSpec, StageResult, TrainSpec
from loco.contracts.stages import Stage
from loco.ledger.reader import LedgerReader
from loco.planning.time import start_seconds, step_seconds
from loco.planning.ways import Way, kind_of
from loco.recipes.default_sets import split_of

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


@dataclass(frozen=True)
class Answering:
    """How a base model answered an adapter's questions."""

    #: Part of the first answers that are right, 0 to 1.
    pass_rate: float
    #: Tokens an answer, and of all answers a second.
    tokens: float
    tokens_per_second: float
    #: The stage that asked, and the runs these are medians of.
    stage: Stage
    runs: int


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
            if task.result.get("base_reused") is False and task.result.get("served_base"):
                continue  # wrote the base of its adapters too, which is done once
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
            result = _result(job, Stage.TRAIN, TrainResult)
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

    def held_back(self, spec: JobSpec) -> tuple[HeldBackRows, str] | None:
        """What the newest job held back of the same rows in the same way, and its ID."""
        job = self.prepared(spec)
        if job is None or split_of(job.spec.prepare) != split_of(spec.prepare):
            return None
        result = _result(job, Stage.PREPARE, PrepareResult)
        return (result.held_back, job.id) if result and result.held_back else None

    def answering(self, spec: JobSpec) -> Answering | None:
        """How the base answered when prepare last asked it for this adapter; else when eval did.

        Runs of prepare that asked the same questions in the same words come before others.
        """
        prepared: list[tuple[PrepareSpec, Answering]] = []
        evaluated: list[Answering] = []
        for job in self._alike(spec):
            sampled = _sampled(job)
            if sampled is not None:
                prepared.append((job.spec.prepare, sampled))
            measured = _measured(job, spec)
            if measured is not None:
                evaluated.append(measured)
        same = [found for asked, found in prepared if _same_rows(asked, spec.prepare)]
        return _median(same or [found for _, found in prepared] or evaluated)

    def questions(self, spec: JobSpec) -> int | None:
        """Usable questions of the source that a job would ask, as its newest run found them.

        None: there is no end to them, or no run has read them. Rows taken with their answers count, too:
        of those at most some can't be graded. A file that has grown since is taken for what it was.
        """
        wanted = _questions_of(spec.prepare)
        if isinstance(wanted, ArithmeticSource | ReasoningGymSource):
            return None
        for job in self._jobs:
            if job.adapter != spec.adapter or _questions_of(job.spec.prepare) != wanted:
                continue
            result = _result(job, Stage.PREPARE, PrepareResult)
            if result is not None:
                dropped: dict[str, int] = result.dropped.model_dump()
                held = result.held_back.rows if result.held_back else 0
                return result.read - sum(dropped.values()) - held
        return None

    def base_score(self, spec: JobSpec) -> tuple[Score, str, str] | None:
        """The newest score of the base on the primary set of this adapter: score, set, job."""
        for job in self._alike(spec):
            result = _result(job, Stage.EVAL, EvalResult)
            for c in result.comparisons if result else ():
                if c.role is Role.PRIMARY and c.against is Baseline.BASE and c.base.total:
                    return c.base, c.set, job.id
        return None

    def _alike(self, spec: JobSpec) -> list[Job]:
        """Jobs of the same adapter and base model."""
        base = spec.train.base_model.name
        return [
            job
            for job in self._jobs
            if job.adapter == spec.adapter and job.spec.train.base_model.name == base
        ]

    def _trained(self, base_model: str) -> list[Trained]:
        found = (_trained(j) for j in self._jobs if j.spec.train.base_model.name == base_model)
        return [run for run in found if run is not None]


def _trained(job: Job) -> Trained | None:
    """A job's own run of train; a reused result is that of another job."""
    task = job.stage(Stage.TRAIN)
    if task is None or task.status is not StageStatus.SUCCEEDED:
        return None
    result = _result(job, Stage.TRAIN, TrainResult)
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


def _sampled(job: Job) -> Answering | None:
    """What a job's own prepare asked; None: it asked nothing, or knew every answer."""
    task = job.stage(Stage.PREPARE)
    if task is None or task.status is not StageStatus.SUCCEEDED:
        return None
    result = _result(job, Stage.PREPARE, PrepareResult)
    sampling = result.sampling if result else None
    if sampling is None or not sampling.tokens_per_second or not sampling.asked:
        return None
    tokens = sampling.tokens / sampling.asked
    return Answering(sampling.pass_rate, tokens, sampling.tokens_per_second, Stage.PREPARE, 1)


def _measured(job: Job, spec: JobSpec) -> Answering | None:
    """What a job's eval says of the base, with the instruction where it would be sampled with one."""
    result = _result(job, Stage.EVAL, EvalResult)
    if result is None:
        return None
    source = spec.prepare.source
    told = isinstance(source, SelfSource) and source.instruction is not None
    scores = {c.against: c.base for c in result.comparisons if c.role is Role.PRIMARY}
    score = (scores.get(Baseline.INSTRUCTED) if told else None) or scores.get(Baseline.BASE)
    fresh = _fresh_tokens(result.comparisons)
    if score is None or not score.tokens or not fresh or not result.seconds:
        return None
    return Answering(
        score.accuracy, score.tokens / score.total, fresh / result.seconds, Stage.EVAL, 1
    )


def _fresh_tokens(comparisons: Sequence[Comparison]) -> float:
    """Tokens that eval had the server compute; a candidate is in every comparison of a set."""
    scores = {(c.set, str(c.against)): c.base for c in comparisons}
    scores |= {(c.set, "candidate"): c.candidate for c in comparisons}
    return sum(s.tokens * (1 - s.cached / s.total) for s in scores.values() if s.total)


def _median(found: Sequence[Answering]) -> Answering | None:
    """The newest runs in one; None: there is none."""
    newest = found[:_RUNS]
    if not newest:
        return None
    return Answering(
        pass_rate=median(run.pass_rate for run in newest),
        tokens=median(run.tokens for run in newest),
        tokens_per_second=median(run.tokens_per_second for run in newest),
        stage=newest[0].stage,
        runs=len(newest),
    )


def _questions_of(spec: PrepareSpec) -> GivenSource:
    source = spec.source
    return source.questions if isinstance(source, SelfSource) else source


def _same_rows(a: PrepareSpec, b: PrepareSpec) -> bool:
    """Whether two specs draw rows of the same kind; how many and which seed does not matter."""
    return _kind_of_rows(a) == _kind_of_rows(b)


def _kind_of_rows(spec: PrepareSpec) -> tuple[Any, ...]:
    source = spec.source
    if not isinstance(source, SelfSource):
        return (source,)
    base = spec.base_model.name if spec.base_model else None
    return (base, source.questions, source.instruction, source.train_instruction, source.fallback)


def _size(spec: JobSpec, stage: Stage) -> tuple[Any, ...]:
    """What a stage's time depends on most."""
    common = (spec.adapter, spec.train.base_model.name)
    parts: dict[Stage, Callable[[], tuple[Any, ...]]] = {
        Stage.PREPARE: lambda: (spec.prepare.source, spec.prepare.examples),
        Stage.EXPORT: lambda: (spec.export.quantization, spec.export.format),
        Stage.EVAL: lambda: (spec.eval,),
    }
    return (*common, *parts.get(stage, tuple)())


def _result(job: Job, stage: Stage, model: type[_ResultT]) -> _ResultT | None:
    """A job's committed result of a stage; None when there is none in the present form."""
    task = job.stage(stage)
    if task is None or not task.status.is_committed or task.result is None:
        return None
    try:
        return model.model_validate(task.result, extra="ignore")
    except ValidationError:  # of an older release
        return None
