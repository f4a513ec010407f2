"""Rows held back to measure with: prepare takes them out, eval asks them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import DataError, SandboxUnavailable
from loco.contracts.results import PrepareResult
from loco.contracts.specs import EvalSpec, Inputs, JobSpec, PrepareSpec
from loco.contracts.stages import Stage
from loco.datasets.overlap import OverlapIndex, normalise
from loco.grading.eval_items import load_eval_items
from loco_worker import prepare
from loco_worker.measuring.problems import problem_sets, unmeasured

SPLIT = {"split": {"source": {"kind": "split"}}}
TOWNS = ("Lisbon", "Oslo", "Rome", "Paris", "Bern", "Wien", "Kyiv", "Riga", "Baku", "Doha")


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    folder = tmp_path / "towns"
    folder.mkdir()
    return Inputs(
        job_id="j",
        adapter="towns",
        adapter_dir=folder,
        models_dir=folder,
        locks_dir=folder,
        ollama_host="http://127.0.0.1:9",
    )


@pytest.fixture
def run(inputs: Inputs, tmp_path: Path, heard: Any) -> Callable[..., tuple[PrepareResult, Path]]:
    def run(name: str, rows: list[Any], **spec: Any) -> tuple[PrepareResult, Path]:
        path = inputs.adapter_dir / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / name
        out.mkdir()
        source = {"kind": "jsonl", "path": "rows.jsonl"}
        asked = {"source": source, "eval_sets": SPLIT, **spec}
        return prepare.run(PrepareSpec.model_validate(asked), inputs, out, heard.emit), out

    return run


def towns(count: int, first: int = 0) -> list[dict[str, str]]:
    return [
        {"question": f"In which town does person {n} live?", "answer": f"{TOWNS[n % 10]} {n}"}
        for n in range(first, first + count)
    ]


def asked_in(path: Path) -> set[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {normalise(json.loads(line)["conversations"][0]["content"]) for line in lines}


def test_a_row_held_back_is_neither_trained_on_nor_validated_on(run: Any) -> None:
    result, out = run("o", towns(300), examples=200, validation=50)
    items = load_eval_items(out / "eval_sets/split.jsonl")
    trained = asked_in(out / "training_data.jsonl")
    validated = asked_in(out / "validation_data.jsonl")
    problems = {normalise(item.question) for item in items}
    assert (len(trained), len(validated), len(problems)) == (200, 50, 30)
    assert not problems & (trained | validated)
    assert {item.grader.kind for item in items if item.grader} == {"words"}
    assert result.eval_sets == {"split": 30}
    assert result.files["eval_sets/split.jsonl"] == "eval_sets/split.jsonl"
    assert result.held_back is not None
    assert (result.held_back.rows, result.held_back.grader) == (30, "words")


def test_thoughts_are_trained_on_and_no_part_of_the_right_answer(run: Any) -> None:
    rows = [row | {"answer": f"<think>Hm.</think>{row['answer']}"} for row in towns(60)]
    result, out = run("one", rows, examples=20)
    assert result.held_back is not None
    assert result.held_back.rows == 20
    assert "<think>" in (out / "training_data.jsonl").read_text()
    for item in load_eval_items(out / "eval_sets" / "split.jsonl"):
        assert "think" not in item.model_dump_json()


def test_a_problem_that_asks_for_code_is_refused_here_before_training(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where code cannot run safely: it was found out in eval, after hours of training."""

    def refuse(items: Any) -> None:
        if any(item.grader and item.grader.kind == "code" for item in items):
            raise SandboxUnavailable("no sandbox")

    monkeypatch.setattr(prepare, "check_gradable", refuse)
    grader = {"kind": "code", "entry": "f", "cases": [{"args": [1], "expected": 1}]}
    rows = [row | {"answer": "def f(x): return x", "grader": grader} for row in towns(60)]
    with pytest.raises(SandboxUnavailable):
        run("one", rows, examples=20)


def test_the_split_is_the_same_whatever_the_seed_of_training(run: Any) -> None:
    written = []
    for name, more in (("a", {"seed": 1}), ("b", {"seed": 1}), ("c", {"seed": 2, "examples": 90})):
        _, out = run(name, towns(300), **more)
        written.append(
            [(out / f).read_bytes() for f in ("eval_sets/split.jsonl", prepare.TRAINING_DATA)]
        )
    assert written[0] == written[1]
    assert written[0][0] == written[2][0]
    assert written[0][1] != written[2][1]
    other = {"split": {"source": {"kind": "split"}, "seed": 9}}
    _, out = run("d", towns(300), eval_sets=other)
    assert (out / "eval_sets/split.jsonl").read_bytes() != written[0][0]


def test_no_row_overlaps_a_problem_nor_comes_back_from_another_source(
    run: Any, inputs: Inputs
) -> None:
    rows = towns(60)
    rows += [{**r, "question": f"{r['question']} Say it in one word."} for r in rows]
    (inputs.adapter_dir / "more.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in [*towns(60), *towns(40, first=900)])
    )
    other = {"kind": "jsonl", "path": "more.jsonl"}
    result, out = run("o", rows, validation_source=other, validation=200)
    items = load_eval_items(out / "eval_sets/split.jsonl")
    index = OverlapIndex(13)
    for item in items:
        index.add(item.id, item.question)
    seen = asked_in(out / "training_data.jsonl") | asked_in(out / "validation_data.jsonl")
    assert not [question for question in seen if index.match(question)]
    assert result.dropped.overlap == len(result.overlaps) > 0
    assert all(overlap.eval_item.startswith("split/row-") for overlap in result.overlaps)
    assert result.validation >= 40


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (towns(20), "30 are the least"),
        (
            [{"prompt": r["question"], "chosen": r["answer"], "rejected": "no"} for r in towns(60)],
            "no row asks one question",
        ),
        (
            [
                {
                    "messages": [
                        {"role": role, "content": f"{text} {r['question']}"}
                        for text in ("Well,", "And")
                        for role in ("user", "assistant")
                    ]
                }
                for r in towns(60)
            ],
            "no row asks one question",
        ),
    ],
    ids=["few", "pairs", "talks"],
)
def test_where_none_can_be_held_back_all_are_trained_on_and_eval_says_why(
    run: Any, rows: list[Any], why: str, inputs: Inputs, tiny: JobSpec, heard: Any
) -> None:
    result, out = run("o", rows, validation=0)
    assert result.kept == len(rows)
    assert not (out / "eval_sets").exists()
    assert result.held_back is not None
    assert result.held_back.rows == 0
    assert why in result.held_back.why
    assert "no row is held back" in heard.logs
    assert why in heard.logs
    after = inputs.model_copy(update={"results": {Stage.PREPARE: result.model_dump(mode="json")}})
    sets = problem_sets(of_split(tiny), after, heard.emit)
    assert sets == {"split": []}
    (said,) = unmeasured(sets, after)
    assert why in said


def of_split(tiny: JobSpec) -> EvalSpec:
    return EvalSpec.model_validate({**tiny.eval.model_dump(), "sets": SPLIT})


def test_eval_asks_what_prepare_held_back(
    run: Any, inputs: Inputs, tiny: JobSpec, heard: Any
) -> None:
    result, out = run("o", towns(60))
    after = inputs.model_copy(
        update={
            "results": {Stage.PREPARE: result.model_dump(mode="json")},
            "files": {f"prepare/{name}": out / path for name, path in result.files.items()},
        }
    )
    sets = problem_sets(of_split(tiny), after, heard.emit)
    assert sets["split"] == load_eval_items(out / "eval_sets/split.jsonl")
    assert len(sets["split"]) == 20
    assert not unmeasured(sets, after)


def test_a_prepare_that_held_none_back_cannot_be_measured_so(
    inputs: Inputs, tiny: JobSpec, heard: Any
) -> None:
    before = {"eval_sources": {"benchmark": {"source": {"kind": "jsonl", "path": "a.jsonl"}}}}
    after = inputs.model_copy(update={"results": {Stage.PREPARE: before}})
    with pytest.raises(DataError, match="held none back") as caught:
        problem_sets(of_split(tiny), after, heard.emit)
    assert caught.value.param == "eval.sets.split.source"
