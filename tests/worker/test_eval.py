"""Stage eval against a real model host."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import (
    DataError,
    OllamaRefused,
    OllamaUnavailable,
    RegistrationFailed,
    SandboxUnavailable,
)
from loco.contracts.results import EvalResult
from loco.contracts.specs import EvalSpec, Inputs, JobSpec
from loco.contracts.stages import Stage
from loco.serving.host import OllamaHost
from loco.stage.program import Stopped
from loco_worker import eval as evaluation
from loco_worker import register

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
        told = {"eval_sources": {n: s.model_dump() for n, s in tiny.prepare.eval_sets.items()}}
        results = {Stage.REGISTER: registered.model_dump(), Stage.PREPARE: told}
        return evaluation.run(
            EvalSpec.model_validate({**tiny.eval.model_dump(), "num_predict": 48, **(spec or {})}),
            inputs_of(**{"results": results, **inputs}),
            out,
            heard.emit,
        )

    return go


def answered(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/eval.jsonl").read_text().splitlines()]


def test_both_models_answer_every_question_of_every_set(
    run: Callable[..., EvalResult], tmp_path: Path, heard: Any, model_host: str
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"id": "h0001", "question": "What is 3 + 4?", "answer": "7"}\n')
    data = tmp_path / "training_data.jsonl"
    turns = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]
    data.write_text(json.dumps({"conversations": turns}) + "\n")

    result = run(
        files={"prepare/eval_sets/held_out.jsonl": held_out, "prepare/training_data.jsonl": data}
    )

    rows = answered(tmp_path)
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
    assert {c.set: (c.role, c.gain, c.won, c.lost, c.p_value) for c in result.comparisons} == {
        "benchmark": ("shown", 0, 0, 0, 1),
        "held_out": ("primary", 0, 0, 0, 1),
    }
    benchmark = result.comparisons[0]
    assert benchmark.base.correct == sum(r["correct"] for r in rows[:2])
    assert benchmark.base.low <= benchmark.base.accuracy <= benchmark.base.high
    assert benchmark.base.tokens == sum(r["tokens"] for r in rows[:2])
    assert benchmark.base.latency_p50 is not None
    with OllamaHost(model_host) as host:
        assert "smollm2:135m" in host.digests()
    assert result.left_out == {"promoted": "no other version serves yet"}
    assert result.contaminated == {"benchmark": 1, "held_out": 0}
    assert "CONTAMINATED: 1 problems of benchmark" in heard.logs
    assert "not compared with baseline promoted: no other version serves yet" in heard.logs
    steps = [e["progress"] for e in heard.events if e["type"] == "progress"]
    assert any(s.get("total_steps") == 6 and "eta_seconds" in s for s in steps)
    assert "benchmark: locollm-math-tiny:" in heard.logs
    problems = (tmp_path / "out/problems.jsonl").read_text().splitlines()
    assert [json.loads(p)["contaminated"] for p in problems] == [True, False, False]
    assert {json.loads(p)["outcome"] for p in problems} <= {"both", "neither"}
    assert result.gate is not None
    text = (tmp_path / "out/report.md").read_text()
    assert "# How good is locollm-math-tiny:" in text
    assert f"**Verdict: {result.gate.verdict}.**" in text
    assert f"gate: {result.gate.verdict}." in heard.logs


def test_where_no_row_was_held_back_nothing_is_measured_and_that_is_said(
    run: Callable[..., EvalResult], tiny: JobSpec, tmp_path: Path
) -> None:
    """Nor is a base downloaded that nobody asks: this one cannot be had."""
    split = {"split": {"source": {"kind": "split"}, "role": "primary"}}
    held = {"set": "split", "rows": 0, "grader": None, "why": "4 rows are too few"}
    prepared = {"eval_sources": {"split": {"source": {"kind": "split"}}}, "held_back": held}
    proven = json.loads((tmp_path / "out/register.json").read_text())
    proven["checks"] = [check | {"passed": True} for check in proven["checks"]]
    base = tiny.eval.base_model.model_dump() | {"ollama": "nobody:1b", "kind": "hub"}
    result = run(
        {"sets": split, "base_model": base},
        results={Stage.REGISTER: proven, Stage.PREPARE: prepared},
    )
    assert not answered(tmp_path)
    assert not result.comparisons
    assert "4 rows are too few" in result.warnings[0]
    assert result.gate is not None
    assert result.gate.verdict == "unproven"
    assert "4 rows are too few" in (tmp_path / "out/report.md").read_text()


def test_a_base_too_weak_for_its_own_answers_is_told_to_take_others(
    run: Callable[..., EvalResult], tiny: JobSpec, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"id": "h0001", "question": "What is 3 + 4?", "answer": "123456"}\n')

    def sampled(own: int, hinted: int, gold: int) -> dict[str, Any]:
        rows = {"rows_by_tries": {"1": own - 1, "3": 1}, "hinted": hinted, "gold": gold}
        return {**registered, Stage.PREPARE: {**told, "sampling": {"pass_rate": 0.0, **rows}}}

    def advice(results: dict[Stage, Any]) -> str:
        result = run(
            {"limit": 1, "num_predict": 16},
            files={"prepare/eval_sets/held_out.jsonl": held_out},
            results=results,
        )
        assert result.gate is not None
        return " ".join(result.gate.advice)

    proven = json.loads((tmp_path / "out/register.json").read_text())
    proven["checks"] = [check | {"passed": True} for check in proven["checks"]]
    registered = {Stage.REGISTER: proven}
    told = {"eval_sources": {n: s.model_dump() for n, s in tiny.prepare.eval_sets.items()}}
    assert "profile `gold`" in advice(sampled(own=200, hinted=0, gold=0))
    assert "profile `gold`" in advice(sampled(own=90, hinted=20, gold=90))
    # what fallback: gold filled up is no reason to take gold rows
    assert "gold" not in advice(sampled(own=5, hinted=0, gold=195))
    assert "gold" not in advice({**registered, Stage.PREPARE: {**told, "sampling": None}})
    assert "gold" not in advice({**registered, Stage.PREPARE: told})


def test_baselines_are_the_base_instructed_exported_and_what_serves(
    run: Callable[..., EvalResult], tmp_path: Path, model_host: str
) -> None:
    run({"limit": 1})  # creates the base
    with OllamaHost(model_host) as host:
        host.copy("smollm2:135m", "locollm-math-tiny:old")
        host.copy("smollm2:135m", "locollm-math-tiny:base")
        digest = host.digests()["locollm-math-tiny:old"]
        candidate = next(m for m in host.digests() if m.endswith("4f9a2c"))
    sets = {
        name: {"source": {"kind": "arithmetic"}, "count": 2, "role": role, "seed": seed}
        for name, role, seed in (("held_out", "primary", 1), ("general", "guard", 2))
    }
    spec = {
        "sets": sets,
        "baselines": ["base", "instructed", "exported", "promoted"],
        "instruction": "Answer with the number alone.",
        "num_predict": 16,
    }
    promoted = {"version": 3, "candidate": "locollm-math-tiny:old", "digest": digest}
    registered = {"candidate": candidate, "exported_base": "locollm-math-tiny:base"}
    result = run(spec, results={Stage.REGISTER: registered}, promoted=promoted)
    assert [(c.set, c.against, c.base.model) for c in result.comparisons] == [
        ("held_out", "base", "smollm2:135m"),
        ("held_out", "instructed", "smollm2:135m"),
        ("held_out", "exported", "locollm-math-tiny:base"),
        ("held_out", "promoted", "locollm-math-tiny:old"),
        ("general", "base", "smollm2:135m"),
        ("general", "exported", "locollm-math-tiny:base"),
        ("general", "promoted", "locollm-math-tiny:old"),
    ]
    assert result.left_out == {}
    assert [c.allowance for c in result.comparisons] == [None] * 4 + [0.05] * 3
    systems = {(r["role"], r["system"]) for r in answered(tmp_path)}
    assert systems == {
        ("base", None),
        ("instructed", "Answer with the number alone."),
        ("exported", None),
        ("promoted", None),
        ("candidate", None),
    }
    # what can't be had is said
    wrong = {**promoted, "digest": "another"}
    result = run(
        {**spec, "instruction": None},
        results={Stage.REGISTER: {**registered, "exported_base": "locollm-math-tiny:gone"}},
        promoted=wrong,
    )
    assert result.left_out == {
        "instructed": "the recipe has no eval.instruction",
        "exported": "locollm-math-tiny:gone is no longer in Ollama",
        "promoted": "locollm-math-tiny:old in Ollama is not the promoted model: its digest differs",
    }
    with OllamaHost(model_host) as host:
        mine = {"version": 4, "candidate": candidate, "digest": host.digests()[candidate]}
    result = run({**spec, "baselines": ["base", "promoted"]}, promoted=mine)
    assert result.left_out == {"promoted": "it is the candidate itself"}


def test_the_same_seed_gives_the_same_answers(
    run: Callable[..., EvalResult], tmp_path: Path
) -> None:
    answers = []
    for name in ("a", "b"):
        run({"limit": 1}, answers_dir=tmp_path / name)
        lines = (tmp_path / "out" / "eval.jsonl").read_text().splitlines()
        answers.append([json.loads(line)["answer"] for line in lines])
    assert answers[0] == answers[1]
    assert len(answers[0]) == 4


def test_cut_answers_are_counted(run: Callable[..., EvalResult]) -> None:
    result = run({"limit": 1, "num_predict": 2})
    assert result.comparisons[0].base.unfinished == 1


def test_a_deleted_candidate_is_an_error_with_a_way_out(run: Callable[..., EvalResult]) -> None:
    with pytest.raises(RegistrationFailed, match="has no locollm-math:gone") as caught:
        run(results={Stage.REGISTER: {"candidate": "locollm-math:gone"}})
    assert "register" in str(caught.value.hint)


def test_eval_needs_a_registered_candidate(run: Callable[..., EvalResult]) -> None:
    with pytest.raises(RegistrationFailed, match="There is no candidate"):
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
def test_a_set_is_a_file_of_the_adapter(run: Callable[..., EvalResult], name: str) -> None:
    with pytest.raises(DataError):
        run({"sets": {"mine": {"source": {"kind": "jsonl", "path": name}}}})


def test_code_that_cannot_run_safely_here_is_said_before_a_model_is_asked(
    run: Callable[..., EvalResult],
    tmp_path: Path,
    heard: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asks_for_code = tmp_path / "code.jsonl"
    grader = {"kind": "code", "entry": "f", "cases": [{"args": [2], "expected": 4}]}
    item = {"id": "c1", "question": "Write f(x) that doubles x.", "grader": grader}
    asks_for_code.write_text(json.dumps(item) + "\n")
    monkeypatch.setattr("sys.platform", "darwin")
    sets = {"code": {"source": {"kind": "jsonl", "path": str(asks_for_code)}}}
    with pytest.raises(SandboxUnavailable, match="Linux"):
        run({"sets": sets}, dataset_dirs=(tmp_path,))
    assert not any("asking" in str(event) for event in heard.events)
