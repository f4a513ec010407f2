"""Which problems are asked, and which of them a model may know."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import DataError
from loco.contracts.evaluation import ItemSource
from loco.contracts.specs import EvalSpec, Inputs, JobSpec
from loco.contracts.stages import Stage
from loco.grading.eval_items import EvalItem
from loco_worker.measuring.problems import contaminated, problem_sets

ARITHMETIC = {"source": {"kind": "arithmetic"}, "count": 5}


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    folder = tmp_path / "math"
    folder.mkdir()
    return Inputs(
        job_id="j",
        adapter="math",
        adapter_dir=folder,
        models_dir=folder,
        locks_dir=folder,
        ollama_host="http://127.0.0.1:9",
    )


@pytest.fixture
def spec_of(tiny: JobSpec) -> Callable[..., EvalSpec]:
    def make(sets: dict[str, Any], **more: Any) -> EvalSpec:
        return EvalSpec.model_validate({**tiny.eval.model_dump(), "sets": sets, **more})

    return make


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(inputs: Inputs, tmp_path: Path, **sources: Any) -> Inputs:
    """Inputs as after a prepare that took one recognisable problem for each set."""
    files = {
        f"prepare/eval_sets/{name}.jsonl": write(
            tmp_path / f"{name}.jsonl", {"id": "p", "question": "Prepared?", "answer": "1"}
        )
        for name in sources
    }
    told = {name: ItemSource.model_validate(s).model_dump() for name, s in sources.items()}
    return inputs.model_copy(
        update={"files": files, "results": {Stage.PREPARE: {"eval_sources": told}}}
    )


def test_the_problems_prepare_kept_out_are_asked(
    inputs: Inputs, spec_of: Any, tmp_path: Path, heard: Any
) -> None:
    inputs = prepared(inputs, tmp_path, held_out=ARITHMETIC)
    sets = problem_sets(spec_of({"held_out": ARITHMETIC}), inputs, heard.emit)
    assert [i.question for i in sets["held_out"]] == ["Prepared?"]


@pytest.mark.parametrize(
    "other", [{"count": 6}, {"seed": 1}, {"source": {"kind": "reasoning-gym"}}]
)
def test_another_set_is_read_anew(
    inputs: Inputs, spec_of: Any, tmp_path: Path, heard: Any, other: dict[str, Any]
) -> None:
    inputs = prepared(inputs, tmp_path, held_out=ARITHMETIC)
    sets = problem_sets(spec_of({"held_out": {**ARITHMETIC, **other}}), inputs, heard.emit)
    assert len(sets["held_out"]) == other.get("count", 5)
    assert "Prepared?" not in [i.question for i in sets["held_out"]]


def test_a_role_is_no_other_set(inputs: Inputs, spec_of: Any, tmp_path: Path, heard: Any) -> None:
    inputs = prepared(inputs, tmp_path, held_out=ARITHMETIC)
    sets = problem_sets(spec_of({"held_out": {**ARITHMETIC, "role": "guard"}}), inputs, heard.emit)
    assert [i.question for i in sets["held_out"]] == ["Prepared?"]


def test_a_file_is_read_as_it_is_now(
    inputs: Inputs, spec_of: Any, tmp_path: Path, heard: Any
) -> None:
    source = {"source": {"kind": "jsonl", "path": "new.jsonl"}}
    write(inputs.adapter_dir / "new.jsonl", {"id": "n", "question": "New?", "answer": "1"})
    inputs = prepared(inputs, tmp_path, mine=source)
    sets = problem_sets(spec_of({"mine": source}), inputs, heard.emit)
    assert [i.question for i in sets["mine"]] == ["New?"]


def test_a_sample_is_the_same_for_every_job_and_part_of_a_larger_one(
    inputs: Inputs, spec_of: Any, heard: Any
) -> None:
    rows = [{"question": f"How much is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(60)]
    write(inputs.adapter_dir / "gsm.jsonl", *rows)
    source = {"kind": "jsonl", "path": "gsm.jsonl"}

    def drawn(count: Any, seed: int = 1) -> list[str]:
        spec = spec_of({"mine": {"source": source, "count": count, "seed": seed}})
        sets = problem_sets(spec, inputs, heard.emit)
        assert all(i.answer == i.question.split()[-1][:-1] for i in sets["mine"])
        assert all(i.id == str(int(i.answer) + 1) for i in sets["mine"]), "ids by line"
        return [i.id for i in sets["mine"]]

    assert drawn(20) == drawn(20)
    assert len(set(drawn(20))) == 20
    assert set(drawn(20)) < set(drawn(30))
    assert drawn(20) != drawn(20, seed=2)
    assert drawn("all") == [str(n) for n in range(1, 61)]
    assert drawn(20) == sorted(drawn(20), key=int)
    with pytest.raises(
        DataError, match=r"eval\.sets\.mine: the recipe wants 61 problems.* gsm.jsonl has 60"
    ) as few:
        drawn(61)
    assert few.value.param == "eval.sets.mine.count"
    assert "60" in str(few.value.hint)


def test_problems_like_training_rows_are_found(tmp_path: Path, heard: Any) -> None:
    def row(*turns: str) -> dict[str, Any]:
        roles = ("user", "assistant") * 2
        return {
            "conversations": [
                {"role": role, "content": text} for role, text in zip(roles, turns, strict=False)
            ]
        }

    data = write(
        tmp_path / "training_data.jsonl",
        row("What is 15 + 27?", "42"),
        row("Hello", "Hi", "Name the capital of FRANCE.", "Paris"),
        row("One two three", "What is 8 + 9?"),
    )
    sets = {
        "a": [
            EvalItem(id="sum", question="Compute 15+27.", answer="42"),
            EvalItem(id="other", question="What is 8 + 9?", answer="17"),
        ],
        "b": [EvalItem(id="capital", question="Hello\nName the capital of France", answer="Paris")],
        "c": [EvalItem(id="new", question="Who was Ada?", answer="x")],
    }
    assert contaminated(sets, data, heard.emit) == {"a": {"sum"}, "b": {"capital"}, "c": set()}


def test_hashes_are_only_those_of_a_worked_answer(inputs: Inputs, spec_of: Any, heard: Any) -> None:
    write(
        inputs.adapter_dir / "mixed.jsonl",
        {"question": "How many?", "answer": "3 and 4 are 7.\n#### 1,007"},
        {"id": "own", "question": "Which?", "answer": "#### B", "grader": "words"},
        {"id": 7, "question": "How much?", "answer": 12},
    )
    source = {"source": {"kind": "jsonl", "path": "mixed.jsonl"}}
    sets = problem_sets(spec_of({"mine": source}), inputs, heard.emit)
    assert [(i.id, i.answer) for i in sets["mine"]] == [
        ("1", "1,007"),
        ("own", "#### B"),
        ("7", "12"),
    ]
