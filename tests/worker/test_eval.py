"""Stage eval against a real model host."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import DataError, OllamaRefused, OllamaUnavailable, RegistrationFailed
from loco.contracts.results import EvalResult
from loco.contracts.specs import EvalSpec, Inputs, JobSpec
from loco.contracts.stages import Stage
from loco.grading.eval_items import EvalItem
from loco.recipes import registry
from loco.stage.program import Stopped
from loco_worker import eval as evaluation
from loco_worker import register
from loco_worker.ollama.host import Answer, OllamaHost

pytestmark = [pytest.mark.redis, pytest.mark.slow]

EXPORTED = "export/gguf/unsloth.Q4_K_M.gguf"


@pytest.fixture
def run(
    tiny: JobSpec,
    gguf: Path,
    inputs_of: Callable[..., Inputs],
    tmp_path: Path,
    heard: Any,
) -> Callable[..., EvalResult]:
    """Runs the stage for a registered candidate; keywords override as in `inputs_of`."""
    out = tmp_path / "out"
    out.mkdir()
    registered = register.run(tiny.register_, inputs_of(files={EXPORTED: gguf}), out, heard.emit)

    def go(spec: dict[str, Any] | None = None, **inputs: Any) -> EvalResult:
        results = {Stage.REGISTER: registered.model_dump()}
        return evaluation.run(
            EvalSpec.model_validate({**tiny.eval.model_dump(), "num_predict": 48, **(spec or {})}),
            inputs_of(**{"results": results, **inputs}),
            out,
            heard.emit,
        )

    return go


@pytest.mark.slow
def test_both_models_answer_every_question_of_both_sets(
    run: Callable[..., EvalResult],
    tmp_path: Path,
    heard: Any,
    stage_adapters: Path,
    model_host: str,
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"id": "h0001", "question": "What is 3 + 4?", "answer": "7"}\n')

    result = run(files={"prepare/held_out.jsonl": held_out})

    rows = [json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text().splitlines()]
    assert [(r["set"], r["id"], r["role"]) for r in rows] == [
        ("benchmark", "sum", "base"),
        ("benchmark", "capital", "base"),
        ("held_out", "h0001", "base"),
        ("benchmark", "sum", "candidate"),
        ("benchmark", "capital", "candidate"),
        ("held_out", "h0001", "candidate"),
    ]
    for row in rows:
        assert row["answer"].strip()
        assert row["tokens"] > 0
        assert row["done_reason"] in ("stop", "length")
    # the candidate is the base model here: the same answers, so nothing won and nothing lost
    assert [r["answer"] for r in rows[:3]] == [r["answer"] for r in rows[3:]]
    assert {c.set: (c.gain, c.won, c.lost, c.p_value) for c in result.comparisons} == {
        "benchmark": (0, 0, 0, 1),
        "held_out": (0, 0, 0, 1),
    }
    benchmark = result.comparisons[0]
    assert benchmark.base.correct == sum(r["correct"] for r in rows[:2])
    assert benchmark.base.low <= benchmark.base.accuracy <= benchmark.base.high
    with OllamaHost(model_host) as host:
        assert "smollm2:135m" in host.digests()
    [version] = registry.read(stage_adapters)["math"]
    assert version.scores is not None
    assert version.scores["held_out"]["problems"] == 1
    steps = [e["progress"] for e in heard.events if e["type"] == "progress"]
    assert any(s.get("total_steps") == 6 and "eta_seconds" in s for s in steps)
    assert "benchmark: smollm2:135m" in heard.logs


def test_the_same_seed_gives_the_same_answers(
    run: Callable[..., EvalResult], tmp_path: Path
) -> None:
    answers = []
    for _ in range(2):
        run({"limit": 1})
        lines = (tmp_path / "out" / "eval.jsonl").read_text().splitlines()
        answers.append([json.loads(line)["answer"] for line in lines])
    assert answers[0] == answers[1]
    assert len(answers[0]) == 2


def test_cut_answers_are_counted(run: Callable[..., EvalResult]) -> None:
    result = run({"limit": 1, "num_predict": 2})
    assert result.comparisons[0].base.unfinished == 1


def test_a_deleted_candidate_is_an_error_with_a_way_out(run: Callable[..., EvalResult]) -> None:
    with pytest.raises(RegistrationFailed, match="has no locollm-math:gone") as caught:
        run(results={Stage.REGISTER: {"candidate": "locollm-math:gone"}})
    assert "register" in str(caught.value.hint)


def test_eval_needs_a_registered_candidate(run: Callable[..., EvalResult]) -> None:
    with pytest.raises(RegistrationFailed, match="No candidate"):
        run(results={})


def test_no_ollama_is_worth_a_retry(run: Callable[..., EvalResult]) -> None:
    with pytest.raises(OllamaUnavailable):
        run(ollama_host="http://127.0.0.1:9")


def test_a_base_model_that_cannot_be_had_is_named(
    run: Callable[..., EvalResult], tiny: JobSpec
) -> None:
    base = tiny.eval.base_model.model_dump()
    with pytest.raises(OllamaRefused, match="nosuch:1b"):
        run({"base_model": {**base, "kind": "hub", "ollama": "nosuch:1b"}})
    with pytest.raises(OllamaRefused, match="folder"):
        run({"base_model": {**base, "kind": "folder", "ollama": "nosuch:1b"}})


def test_a_stop_request_ends_between_two_questions(
    run: Callable[..., EvalResult], heard: Any
) -> None:
    heard.emit.request_stop()
    with pytest.raises(Stopped):
        run()


@pytest.mark.parametrize("name", ["../../base_models.yaml", "/etc/passwd"])
def test_the_benchmark_is_a_file_of_the_adapter(run: Callable[..., EvalResult], name: str) -> None:
    with pytest.raises(DataError):
        run({"benchmark": name})


def test_comparisons_pair_the_same_problem() -> None:
    items = [EvalItem(id=str(n), question="?", answer="1") for n in range(10)]
    answer = Answer("1", "", "stop", 3, 9, 0.5)
    right = {"base": {0, 1}, "candidate": {1, 2, 3, 4, 5, 6, 7, 8}}
    verdicts = [
        evaluation.Verdict("held_out", item, role, role, answer, "1", int(item.id) in right[role])
        for role in ("base", "candidate")
        for item in items
    ]
    made = evaluation.compare("held_out", verdicts)
    assert (made.base.correct, made.candidate.correct) == (2, 8)
    assert made.gain == pytest.approx(0.6)
    assert (made.won, made.lost) == (7, 1)
    assert made.p_value == pytest.approx(2 * (1 + 8) / 256)
    assert "7 won, 1 lost" in evaluation.in_words(made)
