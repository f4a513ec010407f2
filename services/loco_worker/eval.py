"""Stage eval: the candidate against its baselines, on problems it was not trained on.

    python -m loco_worker.eval --spec adapters/math/runs/JOB/eval/a1/spec.json --out /tmp/x

Sets of problems → ask → grade → compare → gate → report. All models answer the same questions through the
same Ollama with the same options: temperature 0, fixed seed, no thinking. Answers given before, to
whatever job, are taken over, so a run that was killed goes on where it was. `report.md` is for people;
every answer is a line of `eval.jsonl`, every problem with all its answers one of `problems.jsonl`.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loco.contracts.evaluation import Baseline, GateResult, Role
from loco.contracts.files import atomic_write, write_text
from loco.contracts.results import Comparison, EvalResult
from loco.contracts.serving import Check
from loco.contracts.specs import EvalSpec, Inputs
from loco.contracts.stages import Stage
from loco.grading.eval_items import EvalItem
from loco.grading.gate import decide
from loco.grading.graders import check_gradable, grade
from loco.serving.host import OllamaHost, full_name
from loco.stage.program import Emitter, main
from loco_worker.asking.answers import AnswerStore
from loco_worker.measuring.asking import PARALLEL, Asking, Question
from loco_worker.measuring.comparing import Verdict, compare
from loco_worker.measuring.models import CANDIDATE, Contest, contest
from loco_worker.measuring.problems import (
    TRAINING_DATA,
    contaminated,
    problem_sets,
    unmeasured,
)
from loco_worker.measuring.report import in_words, left_of_gain, report, warnings

ANSWERS = "eval.jsonl"
PROBLEMS = "problems.jsonl"
SUMMARY = "summary.json"
REPORT = "report.md"

Sets = Mapping[str, Sequence[EvalItem]]


def run(spec: EvalSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> EvalResult:
    """Asks every contestant, grades and compares.

    Raises:
        OllamaUnavailable: no Ollama answers (retried later).
        OllamaRefused: it answers with an error, or the base model can't be had.
        RegistrationFailed: the candidate is not there.
        SandboxUnavailable: a problem asks for code, and code cannot run safely here.
        DataError, SourceUnreachable: an eval set can't be read; names it, and file and line.
    """
    sets = problem_sets(spec, inputs, emit)
    check_gradable(item for items in sets.values() for item in items)
    training_data = inputs.files.get(TRAINING_DATA)
    known = contaminated(sets, training_data, emit) if training_data else {}
    with OllamaHost(inputs.ollama_host) as host:
        who = contest(spec if any(sets.values()) else _alone(spec), inputs, host, emit)
        for baseline, why in who.left_out.items():
            emit.log(f"not compared with baseline {baseline}: {why}")
        asking = _asking(host, spec, who, inputs.answers_dir or out_dir / "answers", emit)
        verdicts = _verdicts(asking, spec, sets, who, emit)

    comparisons = _comparisons(spec, sets, verdicts)
    counts = {name: len(ids) for name, ids in known.items()}
    warned = (
        *unmeasured(sets, inputs),
        *warnings(
            comparisons,
            counts,
            trained_on_known=training_data is not None,
            num_predict=spec.num_predict,
        ),
    )
    for line in (*map(in_words, comparisons), *left_of_gain(comparisons), *warned):
        emit.log(line)
    candidate = next(c.model for c in who.contestants if c.role == CANDIDATE)
    _write(out_dir / ANSWERS, (_answer_row(v) for v in verdicts))
    _write(out_dir / PROBLEMS, _problem_rows(sets, verdicts, known))
    summary = [c.model_dump(mode="json") for c in comparisons]
    write_text(out_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    gate = _gate(spec, inputs, who, comparisons, counts)
    emit.log(f"gate: {gate.verdict}. {' '.join((*gate.reasons, *gate.advice))}")
    text = report(candidate, comparisons, verdicts, left_out=who.left_out, warned=warned, gate=gate)
    write_text(out_dir / REPORT, text)
    emit.progress(message="done", percent=100, last=True)
    return EvalResult(
        seconds=0,
        files={name: name for name in (ANSWERS, PROBLEMS, SUMMARY, REPORT)},
        base_model=full_name(spec.base_model.ollama),
        candidate=candidate,
        comparisons=comparisons,
        contaminated=counts,
        left_out=who.left_out,
        warnings=warned,
        gate=gate,
    )


def _alone(spec: EvalSpec) -> EvalSpec:
    """Without baselines: where there is no question, no base needs to be downloaded to be asked."""
    return spec.model_copy(update={"baselines": ()})


def _asking(
    host: OllamaHost, spec: EvalSpec, who: Contest, answers_dir: Path, emit: Emitter
) -> Asking:
    options = {
        "temperature": 0,
        "seed": spec.seed,
        "num_ctx": spec.num_ctx,
        "num_predict": spec.num_predict,
    }
    store = AnswerStore(answers_dir, server_version=host.version(), options=options)
    store.prune(*(contestant.digest for contestant in who.contestants))
    parallel = PARALLEL if spec.parallel == "auto" else spec.parallel
    return Asking(host, store, options, parallel=parallel, emit=emit)


def _verdicts(
    asking: Asking, spec: EvalSpec, sets: Sets, who: Contest, emit: Emitter
) -> list[Verdict]:
    """Every contestant's graded answer to every question meant for it, in the order of the sets."""
    questions = [
        Question(contestant, name, item)
        for contestant in who.contestants
        for name, items in sets.items()
        if _meets(contestant.role, spec.sets[name].role)
        for item in items
    ]
    found: dict[tuple[str, str, str], Verdict] = {}
    asked, right = Counter[str](), Counter[str]()
    fresh, started = 0, time.monotonic()
    emit.progress(message="asking", step=0, total_steps=len(questions), percent=0, last=True)
    for answered in asking.answers(questions):
        question = answered.question
        verdict = Verdict.of(answered, grade(question.item, answered.answer.text))
        found[_place(question)] = verdict
        role = question.contestant.role
        asked[role] += 1
        right[role] += verdict.correct
        fresh += not answered.cached
        seconds_each = (time.monotonic() - started) / max(1, fresh)
        emit.progress(
            message=f"{role} {verdict.model}: {right[role]} of {asked[role]} right",
            step=len(found),
            total_steps=len(questions),
            percent=round(100 * len(found) / len(questions), 1),
            eta_seconds=round(seconds_each * (len(questions) - len(found)), 1),
            last=len(found) == len(questions),
        )
    taken_over = len(questions) - fresh
    if taken_over:
        emit.log(f"{taken_over} of {len(questions)} answers were reused from earlier runs")
    return [found[_place(question)] for question in questions]


def _place(question: Question) -> tuple[str, str, str]:
    return question.contestant.role, question.set, question.item.id


def _meets(contestant: str, role: Role) -> bool:
    """Whether a contestant answers a set: what an instruction gives is of no interest on a guard."""
    return contestant != Baseline.INSTRUCTED or role is not Role.GUARD


def _comparisons(spec: EvalSpec, sets: Sets, verdicts: Sequence[Verdict]) -> tuple[Comparison, ...]:
    """Each baseline against the candidate, on each set that it answered."""
    by: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        by.setdefault((verdict.set, verdict.role), []).append(verdict)
    return tuple(
        compare(
            name,
            spec.sets[name],
            baseline,
            by[name, baseline],
            by[name, CANDIDATE],
            max_p=spec.gate.max_p,
        )
        for name in sets
        for baseline in Baseline
        if (name, baseline) in by
    )


def _gate(
    spec: EvalSpec,
    inputs: Inputs,
    who: Contest,
    comparisons: Sequence[Comparison],
    contaminated: Mapping[str, int],
) -> GateResult:
    registered = inputs.results.get(Stage.REGISTER, {})
    checks = [Check.model_validate(check) for check in registered.get("checks") or ()]
    prepared = inputs.results.get(Stage.PREPARE)
    serving = inputs.promoted
    if serving is not None and serving.candidate == registered.get("candidate"):
        serving = None  # what serves is measured again: there is nothing to take the place of
    return decide(
        spec.gate,
        comparisons,
        checks,
        serving.version if serving else None,
        contaminated=contaminated,
        not_compared=who.left_out.get(Baseline.PROMOTED),
        own=None if prepared is None else _own(prepared),
        adapter=inputs.adapter,
    )


def _own(prepared: Mapping[str, Any]) -> bool:
    """Whether most training rows hold the base's own answers: `fallback: gold` may leave few."""
    sampling = prepared.get("sampling")
    if sampling is None:
        return False
    own = sum(sampling.get("rows_by_tries", {}).values()) + sampling.get("hinted", 0)
    return bool(own > sampling.get("gold", 0))


def _answer_row(verdict: Verdict) -> dict[str, Any]:
    answer, graded = verdict.answer, verdict.graded
    return {
        "set": verdict.set,
        "id": verdict.item.id,
        "question": verdict.item.question,
        "system": verdict.system,
        "expected": verdict.item.answer,
        "role": verdict.role,
        "model": verdict.model,
        "answer": answer.text,
        "extracted": graded.extracted,
        "correct": graded.correct,
        "why": graded.why,
        "done_reason": answer.done_reason,
        "tokens": answer.tokens,
        "seconds": answer.computed or answer.seconds,
        "cached": verdict.cached,
    }


def _problem_rows(
    sets: Sets, verdicts: Sequence[Verdict], known: Mapping[str, set[str]]
) -> Iterable[dict[str, Any]]:
    """A row a problem, all answers in it; `outcome` is the candidate's against the base."""
    by: dict[tuple[str, str], dict[str, Verdict]] = {}
    for verdict in verdicts:
        by.setdefault((verdict.set, verdict.item.id), {})[verdict.role] = verdict
    outcomes = {
        (True, False): "won",
        (False, True): "lost",
        (True, True): "both",
        (False, False): "neither",
    }
    for name, items in sets.items():
        for item in items:
            mine = by[name, item.id]
            base = mine.get(Baseline.BASE)
            yield {
                "set": name,
                "id": item.id,
                "question": item.question,
                "expected": item.answer,
                "kind": item.kind,
                "outcome": outcomes[mine[CANDIDATE].correct, base.correct] if base else None,
                "contaminated": item.id in known[name] if known else None,
                "answers": {
                    role: {
                        "answer": v.answer.text,
                        "extracted": v.graded.extracted,
                        "correct": v.correct,
                        "why": v.graded.why,
                        "finished": v.finished,
                    }
                    for role, v in mine.items()
                },
            }


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(Stage.EVAL, run))
