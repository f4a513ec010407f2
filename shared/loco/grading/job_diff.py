"""Two jobs side by side: recipe, data, environment, outputs, scores; and how much alike they are."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from loco.contracts.diffs import Difference, Figure, JobDiff, Sameness
from loco.contracts.results import EvalResult, ExportResult, PrepareResult, TrainResult
from loco.contracts.specs import JobSpec, StageResult
from loco.contracts.stages import Stage
from loco.grading.job_records import JobRecords
from loco.grading.significance import mcnemar_exact

#: Losses of the same run may differ by this share: sums in another order on another device. It is what
#: plans of one recipe may differ by (docs/adr/0008).
LOSS_TOLERANCE = 0.02
#: Scores differ when a difference at least as large has this probability by chance.
MAX_P = 0.05

#: Bookkeeping of a spec that decides nothing of what is learnt or measured.
_BOOKKEEPING = ("inputs", "replay_of", "reuse", "place", "sweep")
#: A replay's gate is another on purpose.
_GATE = "eval.gate."
#: Of prepare: what is trained and measured on.
_DATA = ("training_data.jsonl", "validation_data.jsonl", "preference_data.jsonl", "eval_sets/")
#: Of what source self asked: how it was done, not what came of it. A later job knows answers of an
#: earlier one.
_HOW_ASKED = {"known", "tokens_per_second", "advice"}
_LOSSES = ("first_loss", "last_loss", "base_validation_loss", "validation_loss")
#: Of train.preference, likewise; its first loss is the same whatever was learnt before.
_PREFERENCE_LOSS = "preference.last_loss"

_ResultT = TypeVar("_ResultT", bound=StageResult)


def compare(first: JobRecords, second: JobRecords) -> JobDiff:
    """The differences of two jobs, and a verdict.

    Args:
        first: the older one, or the one that was replayed.
        second: the other one.
    """
    recipe = _differences(_recipe(first.job.spec), _recipe(second.job.spec))
    data = _differences(_data(first), _data(second))
    outputs = (*_differences(_outputs(first), _outputs(second)), *_answers(first, second))
    scores = _scores(first, second)
    verdict, reasons = _verdict(first, second, recipe=recipe, outputs=outputs, scores=scores)
    return JobDiff(
        first=first.job.id,
        second=second.job.id,
        verdict=verdict,
        reasons=tuple(reasons),
        recipe=recipe,
        data=data,
        environment=_differences(_environment(first), _environment(second)),
        outputs=outputs,
        scores=scores,
    )


def _verdict(
    first: JobRecords,
    second: JobRecords,
    *,
    recipe: tuple[Difference, ...],
    outputs: tuple[Difference, ...],
    scores: tuple[Figure, ...],
) -> tuple[Sameness, list[str]]:
    why = list(_what_differs(first, second, recipe, scores))
    if why:
        return Sameness.DIFFERENT, why
    both = first.tasks.keys() & second.tasks.keys()
    if not both:
        return Sameness.DIFFERENT, [
            "No stage has finished in both jobs, so there is nothing to compare."
        ]
    measured = Stage.EVAL in both
    unread = measured and (first.answers is None or second.answers is None)
    if outputs or unread:
        why = [f"{d.field} differs." for d in outputs]
        if unread:
            why.append("The answers could not be read.")
        why.append(
            f"Same recipe and data; losses within {LOSS_TOLERANCE:.0%}"
            + (f"; no score differs at p < {MAX_P:g}." if measured else "; nothing was measured.")
        )
        return Sameness.EQUIVALENT, why
    alike = ", ".join(stage for stage in Stage if stage in both)
    return Sameness.IDENTICAL, [f"The same bytes and answers of {alike}."]


def _what_differs(
    first: JobRecords,
    second: JobRecords,
    recipe: tuple[Difference, ...],
    scores: tuple[Figure, ...],
) -> Iterator[str]:
    """What makes two jobs different, a sentence each."""
    replayed = (
        second.job.spec.replay_of == first.job.id or first.job.spec.replay_of == second.job.id
    )
    asked = [d.field for d in recipe if not (replayed and d.field.startswith(_GATE))]
    if asked:
        yield f"The recipes differ: {', '.join(asked[:5])}{', …' if len(asked) > 5 else ''}."
    for stage in Stage:
        if (stage in first.tasks) != (stage in second.tasks):
            one = first if stage in first.tasks else second
            yield f"Only job {one.job.id} has finished {stage}."
    for difference in _differences(_files(first), _files(second)):
        if difference.first is not None and difference.second is not None:
            yield f"{difference.field} differs: the jobs used different rows."
    for figure in scores:
        name = figure.field.removeprefix("train.")
        if name in (*_LOSSES, _PREFERENCE_LOSS) and not _close(figure.first, figure.second):
            yield f"{figure.field} is {figure.first} and {figure.second}."
    yield from _score_differences(first, second)


def _close(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=LOSS_TOLERANCE)


def _score_differences(first: JobRecords, second: JobRecords) -> Iterator[str]:
    """Sets on which the candidates differ: paired where both answered the same problems."""
    one, other = _result(first, Stage.EVAL, EvalResult), _result(second, Stage.EVAL, EvalResult)
    if one is None or other is None:
        return
    scores = {c.set: c.candidate for c in one.comparisons}
    for name, score in {c.set: c.candidate for c in other.comparisons}.items():
        before = scores.get(name)
        if before is None:
            continue
        pairs = [
            (a.correct, second.answers[key].correct)
            for key, a in (first.answers or {}).items()
            if second.answers and key in second.answers and key[0] == name
        ]
        if len(pairs) == before.total == score.total:
            won = sum(b and not a for a, b in pairs)
            lost = sum(a and not b for a, b in pairs)
            p = mcnemar_exact(won, lost)
            if p < MAX_P:
                yield f"On {name} the second solved {won} more and {lost} fewer problems, p = {p:.2g}."
        elif score.low > before.high or score.high < before.low:
            yield f"On {name} they solved {before.accuracy:.0%} and {score.accuracy:.0%}."


def _recipe(spec: JobSpec) -> dict[str, Any]:
    document = spec.model_dump(mode="json", by_alias=True, exclude=set(_BOOKKEEPING))
    # prepare's sets and base follow from those of eval and train, and would say everything twice
    for follows in ("eval_sets", "base_model"):
        document["prepare"].pop(follows)
    return dict(_flat(document))


def _files(records: JobRecords) -> dict[str, Any]:
    task = records.tasks.get(Stage.PREPARE)
    artifacts = task.artifacts if task else ()
    return {f"prepare/{a.name}": a.sha256 for a in artifacts if a.name.startswith(_DATA)}


def _data(records: JobRecords) -> dict[str, Any]:
    found: dict[str, Any] = {f"inputs/{n}": f.sha256 for n, f in records.job.spec.inputs.items()}
    found |= _files(records)
    prepared = _result(records, Stage.PREPARE, PrepareResult)
    if prepared is not None:
        counts = prepared.model_dump(
            include={"source", "read", "kept", "dropped", "validation", "eval_sets"}
        )
        found |= {f"prepare.{field}": value for field, value in _flat(counts)}
        if prepared.sampling is not None:
            asked = prepared.sampling.model_dump(exclude=_HOW_ASKED)
            found |= {f"prepare.sampling.{field}": value for field, value in _flat(asked)}
    return found


def _environment(records: JobRecords) -> dict[str, Any]:
    found = {
        f"{stage}.{field}": value
        for stage, environment in records.environments.items()
        for field, value in _flat(environment)
    }
    trained = _result(records, Stage.TRAIN, TrainResult)
    exported = _result(records, Stage.EXPORT, ExportResult)
    return found | {
        f"{stage}.device": result.device
        for stage, result in ((Stage.TRAIN, trained), (Stage.EXPORT, exported))
        if result is not None
    }


def _outputs(records: JobRecords) -> dict[str, Any]:
    found = {
        f"{stage}/{a.name}": a.sha256
        for stage in (Stage.TRAIN, Stage.EXPORT)
        for a in (records.tasks[stage].artifacts if stage in records.tasks else ())
        if a.name.endswith((".safetensors", ".gguf"))
    }
    exported = records.tasks.get(Stage.EXPORT)
    if exported and (weights := (exported.result or {}).get("weights_sha256")):
        # of a GGUF its tensors: the head of the file names job and date
        found = {name: sha for name, sha in found.items() if not name.endswith(".gguf")}
        found["export.weights_sha256"] = weights
    return found


def _answers(first: JobRecords, second: JobRecords) -> Iterator[Difference]:
    """How many answers of each set are another text."""
    one, other = first.answers or {}, second.answers or {}
    shared = one.keys() & other.keys()
    for name in sorted({set_name for set_name, _ in shared}):
        keys = [key for key in shared if key[0] == name]
        changed = sum(one[key].text != other[key].text for key in keys)
        if changed:
            yield Difference(
                field=f"eval.{name}.answers",
                first=f"{len(keys)} answers",
                second=f"{changed} of them in other words",
            )


def _scores(first: JobRecords, second: JobRecords) -> tuple[Figure, ...]:
    one, other = _figures(first), _figures(second)
    return tuple(Figure(field=f, first=one.get(f), second=other.get(f)) for f in {**one, **other})


def _figures(records: JobRecords) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    if trained := _result(records, Stage.TRAIN, TrainResult):
        figures |= {f"train.{loss}": getattr(trained, loss) for loss in _LOSSES}
        if pairs := trained.preference:
            figures[f"train.{_PREFERENCE_LOSS}"] = pairs.last_loss
            figures["train.preference.last_accuracy"] = pairs.last_accuracy
    if (exported := _result(records, Stage.EXPORT, ExportResult)) and exported.perplexity:
        figures["export.perplexity"] = exported.perplexity.exported
    evaluated = _result(records, Stage.EVAL, EvalResult)
    for c in evaluated.comparisons if evaluated else ():
        figures[f"eval.{c.set}.candidate.accuracy"] = c.candidate.accuracy
        figures[f"eval.{c.set}.{c.against}.accuracy"] = c.base.accuracy
        figures[f"eval.{c.set}.{c.against}.gain"] = c.gain
        figures[f"eval.{c.set}.{c.against}.p_value"] = c.p_value
    return figures


def _result(records: JobRecords, stage: Stage, model: type[_ResultT]) -> _ResultT | None:
    """A committed result; None where there is none or another version wrote a different one."""
    task = records.tasks.get(stage)
    if task is None or task.result is None:
        return None
    try:
        return model.model_validate(task.result, extra="ignore")
    except ValidationError:
        return None


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Difference, ...]:
    return tuple(
        Difference(field=field, first=first.get(field), second=second.get(field))
        for field in {**first, **second}
        if first.get(field) != second.get(field)
    )


def _flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their path with dots; lists are leaves."""
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
