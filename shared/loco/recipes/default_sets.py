"""What a job is measured on whose recipe and request name no eval set."""

from pathlib import Path
from typing import Any

from loco.contracts.errors import InvalidRequest
from loco.contracts.evaluation import EvalSet, ItemSource, Role
from loco.contracts.sources import (
    FEWEST_HELD_BACK,
    ArithmeticSource,
    JsonlSource,
    ReasoningGymSource,
    SelfSource,
    Source,
    SplitSource,
)
from loco.contracts.specs import EvalSpec, JobSpec, PrepareSpec

#: The set of rows held back, and that of a generator's own problems.
SPLIT = "split"
GENERATED = "held_out"
#: The file beside a recipe that is its eval set where it names none.
FILE = "eval_dataset.jsonl"
#: Problems that a generator makes.
_COUNT = 200


def default_sets(source: Source, folder: Path) -> dict[str, EvalSet]:
    """The one primary set of a job that names none.

    Args:
        source: of the training rows.
        folder: of the adapter.
    """
    if (folder / FILE).is_file():
        return {"benchmark": EvalSet(source=JsonlSource(kind="jsonl", path=FILE), role=_DECIDES)}
    given = source.questions if isinstance(source, SelfSource) else source
    if isinstance(given, ReasoningGymSource | ArithmeticSource):
        return {GENERATED: EvalSet(source=given, count=_COUNT, role=_DECIDES)}
    return {SPLIT: EvalSet(source=SplitSource(kind="split"), role=_DECIDES)}


_DECIDES = Role.PRIMARY


def with_default_sets(job: JobSpec, asked: dict[str, Any], folder: Path) -> JobSpec:
    """The job with the sets of problems that it is measured on, where it names none.

    With a set held back the gate asks for as many problems as such a set has at least: how many there
    are is known only once the rows are read.

    Args:
        job: resolved, but for this.
        asked: the `eval` of recipe, profile and request, merged.
        folder: of the adapter.
    """
    if asked.get("sets") is not None:
        return job
    sets = default_sets(job.prepare.source, folder)
    changes: dict[str, Any] = {"sets": sets}
    if SPLIT in sets and "min_problems" not in (asked.get("gate") or {}):
        changes["gate"] = job.eval.gate.model_copy(update={"min_problems": FEWEST_HELD_BACK})
    return job.model_copy(update={"eval": job.eval.model_copy(update=changes)})


def split_of(spec: PrepareSpec | EvalSpec) -> tuple[str, ItemSource] | None:
    """The set that is held back from the training rows; None: there is none."""
    sets = spec.eval_sets if isinstance(spec, PrepareSpec) else spec.sets
    found = ((n, s) for n, s in sets.items() if isinstance(s.source, SplitSource))
    return next(found, None)


def check_split(job: JobSpec) -> None:
    """Refuses a set of rows held back that cannot be.

    Raises:
        InvalidRequest: there are two, `count` is set, or the rows come from a generator.
    """
    names = [n for n, s in job.eval.sets.items() if isinstance(s.source, SplitSource)]
    if len(names) > 1:
        raise InvalidRequest(
            f"eval.sets: {' and '.join(names)} are both of source split; rows are held back once.",
            param="eval.sets",
            hint="Leave one of them out.",
        )
    for name in names:
        field = f"eval.sets.{name}"
        if job.eval.sets[name].count != "all":
            raise InvalidRequest(
                f"{field}.count cannot be set with source split.",
                param=f"{field}.count",
                hint=f"Set {field}.source.most, or eval.limit to ask fewer of them.",
            )
        source = job.prepare.source
        given = source.questions if isinstance(source, SelfSource) else source
        if isinstance(given, ReasoningGymSource | ArithmeticSource):
            raise InvalidRequest(
                f"{field}.source: source {given.kind} makes rows without end, so none need be held back.",
                param=f"{field}.source",
                hint=f"Write {field}: {{source: {{kind: {given.kind}}}, count: {_COUNT}, role: primary}}.",
            )
