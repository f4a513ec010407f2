"""What a job came to, on one screen: stages, losses, GGUF, scores, and the model now served.

`loco submit --wait`, `loco watch`, `loco job` and `loco demo` print it:

    Console().print(render(job), crop=False)
"""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loco.cli import progress
from loco.cli.moments import in_line
from loco.cli.verdict import in_words
from loco.contracts.evaluation import Baseline, Verdict
from loco.contracts.figures import duration, share, size, sparkline
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.results import (
    Comparison,
    EvalResult,
    ExportResult,
    PrepareResult,
    RegisterResult,
    Sampling,
    Score,
    TrainResult,
)
from loco.contracts.specs import StageResult
from loco.contracts.stages import Stage

STYLES: dict[str, str] = {
    "succeeded": "green",
    "reused": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "running": "cyan",
    "queued": "default",
    "pending": "dim",
}

_ResultT = TypeVar("_ResultT", bound=StageResult)


def render(job: Job, *, adapters_dir: Path | None = None) -> RenderableType:
    """The summary of a job, ended or not.

    Args:
        job: the job.
        adapters_dir: the adapters folder when it is on this machine: the GGUF is then named by its path.
    """
    parts: list[RenderableType] = [headline(job), stage_table(job)]
    prepared = _result(job.stage(Stage.PREPARE), PrepareResult)
    if prepared and prepared.sampling and prepared.sampling.advice:
        parts += ["", _fields([("advice", advice) for advice in prepared.sampling.advice])]
    if gguf := _gguf(job, adapters_dir):
        parts += ["", gguf]
    if evaluated := _result(job.stage(Stage.EVAL), EvalResult):
        parts += ["", comparison_table(evaluated)]
        if job.promotion and (told := in_words(evaluated, job.promotion)):
            parts += ["", Text(told)]
        parts += [Text(f"Warning: {words}", style="yellow") for words in evaluated.warnings]
    if served := serving(job):
        parts += ["", served]
    if failure := _failure(job):
        parts += ["", failure]
    return Group(*parts)


def headline(job: Job) -> Text:
    """One line: the job, what it builds, how it ended and how long it took."""
    text = Text.assemble(
        ("Job ", "bold"),
        (job.id, "bold"),
        f"  {job.adapter} ({job.profile})  ",
        (job.status.value, STYLES[job.status]),
    )
    if job.spec.replay_of is not None:
        text.append(f" (replay of {job.spec.replay_of})")
    if job.spec.sweep is not None:
        text.append(f" (of {job.spec.sweep})")
    if job.finished_at is not None and job.started_at is None:
        text.append(" before it started")
    elif job.finished_at is not None:
        text.append(f" in {duration(job.took_seconds)}")
    elif job.cancel_requested:
        text.append(", cancel requested", style="yellow")
    elif job.waiting is not None:
        text.append(f", {in_line(job, job.waiting)}")
    return text


def stage_table(job: Job) -> Table:
    """A row a stage: status, time, outcome in words."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for task in job.stages:
        table.add_row(
            task.stage.value,
            Text(task.status.value, style=STYLES[task.status]),
            stage_time(task),
            Text(outcome(task)),
        )
    return table


def stage_time(task: Task) -> str:
    """How long a stage took, all attempts together; empty while it runs or when it was reused."""
    return "" if task.took_seconds is None else duration(task.took_seconds)


def outcome(task: Task) -> str:
    """What a stage came to, in a few words."""
    if task.error is not None and not task.status.is_committed:
        return task.error.message
    if task.result is None:
        running = task.status is StageStatus.RUNNING
        return progress.in_words(task.progress) if running and task.progress else ""
    words = {
        Stage.PREPARE: _prepare,
        Stage.TRAIN: _train,
        Stage.EXPORT: _export,
        Stage.REGISTER: _register,
        Stage.EVAL: _eval,
    }[task.stage](task)
    return f"{words} (from {task.reused_from})" if task.reused_from else words


def comparison_table(result: EvalResult) -> Table:
    """Base against adapter on each set, with 95 % Wilson intervals and the exact McNemar p."""
    several = any(c.against is not Baseline.BASE for c in result.comparisons)
    table = Table(
        title=f"{result.base_model} (base) against {result.candidate} (adapter)",
        title_justify="left",
        title_style="bold",
        caption="with 95 % Wilson intervals and the exact McNemar p",
        caption_justify="left",
        box=None,
        padding=(0, 1 if several else 2, 0, 0),
    )
    table.add_column("set")  # the one that gives way on a narrow terminal
    if several:
        table.add_column("against", no_wrap=True)
    for name in ("base", "adapter", "gain", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for comparison in result.comparisons:
        table.add_row(
            comparison.set.replace("_", " "),
            *([comparison.against.value] if several else []),
            _score(comparison.base),
            _score(comparison.candidate),
            Text(_points(comparison.gain), style="green" if comparison.gain > 0 else "yellow"),
            p_value(comparison.p_value),
        )
    return table


def p_value(p: float) -> str:
    """A probability to two digits; tiny ones as a bound."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def _score(score: Score) -> str:
    """Like `51/100, 51 % (41-61)`."""
    return (
        f"{score.correct}/{score.total}, {share(score.accuracy)} "
        f"({100 * score.low:.0f}-{100 * score.high:.0f})"
    )


def _points(gain: float) -> str:
    return f"{100 * gain:+.0f} pts"


def _result(task: Task | None, model: type[_ResultT]) -> _ResultT | None:
    """A committed result; None where there is none or another version wrote a different one."""
    if task is None or task.result is None:
        return None
    try:
        return model.model_validate(task.result, extra="ignore")
    except ValidationError:
        return None


_OTHER_VERSION = "done. `loco job --json` shows the result"


def _prepare(task: Task) -> str:
    result = _result(task, PrepareResult)
    if result is None:
        return _OTHER_VERSION
    dropped = ", ".join(f"{n} {why}" for why, n in result.dropped if n)
    sets = sum(result.eval_sets.values())
    held_out = f", apart from {sets} eval problems" if sets else ""
    if (held := result.held_back) is not None:
        held_out += (
            f" ({held.rows} of them rows held back, grader {held.grader})"
            if held.rows
            else ", none held back to measure with"
        )
    left_out = f"; left out {dropped}" if dropped else ""
    validation = f" and {result.validation or 'none'} for validation"
    rows = f"{result.kept} of {result.read} rows{validation}"
    if result.sampling is not None:
        rows = f"{result.kept} rows{validation}{_sampled(result.sampling)}"
    return f"{rows}{held_out}{left_out}"


def _sampled(sampling: Sampling) -> str:
    """What source self asked and what became of it."""
    tries = ", ".join(f"{n} at try {t}" for t, n in sorted(sampling.rows_by_tries.items()) if n)
    others = ((sampling.hinted, "with a hint"), (sampling.gold, "gold"))
    tries += "".join(f", {n} {what}" for n, what in others if n)
    words = f" ({tries})" if tries else ""
    if sampling.pairs:
        words += f" and {sampling.pairs} pairs"
    words += (
        f" from {sampling.asked} answers of {sampling.model} to {sampling.questions} questions: "
        f"{share(sampling.pass_rate)} right at the first try"
    )
    if sampling.unfinished:
        words += f", {sampling.unfinished} cut"
    if sampling.known:
        words += f", {sampling.known} reused"
    if sampling.tokens_per_second:
        words += f", {sampling.tokens_per_second:.0f} tokens/s"
    return words


def _train(task: Task) -> str:
    result = _result(task, TrainResult)
    if result is None:
        return _OTHER_VERSION
    curve = sparkline([step.loss for step in result.log if step.part == "training"])
    resumed = f", from step {result.resumed_from_step}" if result.resumed_from_step else ""
    return (
        f"loss {result.first_loss:.3f} → {result.last_loss:.3f} {curve} in {result.total_steps} "
        f"steps{resumed}{_preferred(result)}{_validated(result)}, {result.tokens_per_second:.0f} tokens/s, "
        f"{result.engine} on {result.device}"
    )


def _preferred(result: TrainResult) -> str:
    """What the pairs did."""
    pairs = result.preference
    if pairs is None:
        return ""
    return (
        f", {pairs.steps} of them on {pairs.pairs} pairs (loss {pairs.first_loss:.3f} → "
        f"{pairs.last_loss:.3f}, {pairs.last_accuracy:.0%} told apart)"
    )


def _validated(result: TrainResult) -> str:
    """The validation loss before and with the adapter that is kept, and which that is."""
    base, kept, step = result.base_validation_loss, result.validation_loss, result.selected_step
    if base is None or kept is None or step is None:
        return ""
    if step == 0:
        return f", validation loss {base:.3f}, lower than after any step, so the base is kept"
    words = f", validation loss {base:.3f} → {kept:.3f}"
    if step != result.total_steps:
        return f"{words} at step {step} (best, kept)"
    if result.best_step != step and result.best_validation_loss is not None:
        return f"{words} (lowest {result.best_validation_loss:.3f} at step {result.best_step})"
    return words


def _export(task: Task) -> str:
    result = _result(task, ExportResult)
    if result is None:
        return _OTHER_VERSION
    return f"{result.quantization} GGUF, {size(result.size)}, {result.tensors} tensors"


def _register(task: Task) -> str:
    result = _result(task, RegisterResult)
    if result is None:
        return _OTHER_VERSION
    return result.candidate


def _eval(task: Task) -> str:
    result = _result(task, EvalResult)
    return (
        _OTHER_VERSION
        if result is None
        else "; ".join(_comparison(c) for c in result.comparisons if c.against is Baseline.BASE)
    )


def _comparison(comparison: Comparison) -> str:
    base, candidate = comparison.base, comparison.candidate
    return f"{comparison.set} {share(base.accuracy)} → {share(candidate.accuracy)}"


def _gguf(job: Job, adapters_dir: Path | None) -> RenderableType | None:
    found = [a for task in job.stages for a in task.artifacts if a.name.endswith(".gguf")]
    if not found:
        return None
    gguf = found[-1]
    where = f"{adapters_dir / gguf.path}" if adapters_dir else gguf.full_name
    rows = [("GGUF", where), ("size", size(gguf.size)), ("sha256", gguf.sha256)]
    if adapters_dir is None:  # a path on the server is of no use elsewhere
        rows.append(("get it", f"loco artifacts {job.id} {gguf.stage} --download ."))
    # a line each, however narrow the terminal is: people copy them
    return Group(
        *(
            Text.assemble((f"{label:<8}", "bold"), value, no_wrap=True, overflow="ignore")
            for label, value in rows
        )
    )


def verdict(job: Job) -> str:
    """The gate's verdict on what a job measured; empty where it measured nothing."""
    result = _result(job.stage(Stage.EVAL), EvalResult)
    return result.gate.verdict.value if result and result.gate else ""


def is_promoted(job: Job) -> bool:
    """Whether a job's version is to serve and was not refused; one that served before may be."""
    promoted = job.promotion is not None and job.promotion.promoted
    return promoted and verdict(job) != Verdict.REFUSED


def serving(job: Job) -> RenderableType | None:
    """What serves now: the job's version, or what served before and why."""
    if job.status is not JobStatus.SUCCEEDED:
        return None
    registered = _result(job.stage(Stage.REGISTER), RegisterResult)
    evaluated = _result(job.stage(Stage.EVAL), EvalResult)
    if registered is None and evaluated is None:
        return None
    candidate = registered.candidate if registered else evaluated.candidate if evaluated else ""
    outcome = job.promotion
    if outcome is None:  # a job of an earlier release
        return _fields([("Model", candidate), _try(candidate, registered, job)])
    gate = evaluated.gate if evaluated else None
    refused = gate is not None and gate.verdict is Verdict.REFUSED
    rows = []
    if outcome.promoted and refused and gate:
        said = f"version {outcome.version} serves as {outcome.model}, but the gate now refuses it"
        rows.append(("Refused", said))
        rows += [("", reason) for reason in gate.reasons]
        rows += [("advice", advice) for advice in gate.advice]
        back = f"loco rollback {job.adapter} --model {outcome.model} brings back the version before"
        return _fields([*rows, ("next", back)])
    if outcome.promoted:
        said = f" ({gate.verdict})" if gate else ""
        rows.append(("Serves", f"{outcome.model} now serves version {outcome.version}{said}"))
        rows += [("", reason) for reason in (gate.reasons if gate else [outcome.reason or ""])]
        rows += [("advice", advice) for advice in (gate.advice if gate else ())]
        rows.append(_try(outcome.model, registered, job))
        return _fields(rows)
    present = (
        f"version {outcome.serving} keeps serving as {outcome.model}"
        if outcome.serving is not None
        else f"nothing serves as {outcome.model} yet"
    )
    label = "Refused" if refused else "Kept"
    rows.append((label, f"version {outcome.version} was not promoted: {present}"))
    reasons = gate.reasons if gate and refused else (outcome.reason or "",)
    rows += [("", reason) for reason in reasons if reason]
    rows += [("advice", advice) for advice in (gate.advice if gate else ())]
    rows.append(_try(candidate, registered, job))
    return _fields(rows)


def _try(model: str, registered: RegisterResult | None, job: Job) -> tuple[str, str]:
    """How to ask a model: by Ollama's command, or where our model host serves, by ours."""
    if registered is not None and not registered.ollama_version.endswith("+locollm"):
        return "try", f"ollama run {model}"
    told = job.promotion
    which = f"--version {told.version}" if told is not None else f"--job {job.id}"
    return "try", f"loco chat {job.adapter} {which} --side-by-side"


def _failure(job: Job) -> RenderableType | None:
    error = job.error
    if job.status is JobStatus.CANCELLED:
        return _fields([("Next", f"loco retry {job.id} continues where it stopped")])
    if error is None:
        return None
    rows = [("Error", f"{error.stage}: {error.message}")]
    if error.hint:
        rows.append(("fix", error.hint))
    rows.append(("next", f"loco retry {job.id} continues from {error.stage}"))
    return _fields(rows)


def _fields(rows: list[tuple[str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, Text(value))
    return table
