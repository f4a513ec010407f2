"""Questions with a right answer to grade by, of every kind of row."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.sources import ArithmeticSource, ReasoningGymSource
from loco.contracts.specs import Inputs
from loco.grading.graders import grade
from loco_worker.sources.questions import question_of
from loco_worker.sources.rows import Empty, Malformed
from loco_worker.sources.sources import open_source


def chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)]}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "q?", "answer": "2 <<1+1=2>>\n#### 1,234"}, "1234"),
        ({"question": "q?", "answer": "7"}, "7"),
        (chat("q?", "First 3, then 4. That makes 7."), "7"),
        (chat("q?", "The answer is 7 because 3 + 4 makes it so."), "7"),
        (chat("How many?", "3", "And twice?", "**6**"), "6"),
        (chat("q?", "It costs $12.50"), "12.50"),
    ],
)
def test_the_number_at_the_end_is_expected(record: dict[str, Any], expected: str) -> None:
    row = question_of(4, record)
    assert row.item is not None
    assert (row.item.id, row.item.answer) == ("4", expected)
    assert grade(row.item, f"So the answer is {expected}.").correct


@pytest.mark.parametrize(
    "record",
    [
        {"question": "q?", "answer": "…"},
        {"question": "q?", "answer": "B", "grader": {"kind": "choice", "options": ["X", "Y"]}},
        {"question": "q?", "answer": "B", "grader": {"kind": "unheard-of"}},
        chat("q?", "It depends on 3 or 4 things."),
        [],
    ],
)
def test_without_a_right_answer_it_is_malformed(record: Any) -> None:
    with pytest.raises(Malformed):
        question_of(1, record)


def test_blank_ones_are_empty() -> None:
    with pytest.raises(Empty):
        question_of(1, {"question": " ", "answer": "B", "grader": "words"})


@pytest.mark.parametrize(
    ("answer", "grader", "trained"),
    [
        ("B", {"kind": "choice", "options": ["A", "B"]}, "The answer is B"),
        ("1,000", {"kind": "numeric", "tolerance": 1}, "The answer is 1000"),
        ('{"a": 1}', {"kind": "json"}, '{"a": 1}'),
        ("", {"kind": "contains", "all": ["Paris"]}, ""),
    ],
)
def test_a_row_with_a_grader(answer: str, grader: Any, trained: str) -> None:
    record = {"id": "x", "question": "q?", "answer": answer, "grader": grader, "system": "Brief."}
    row = question_of(1, record)
    assert row.item is not None
    assert row.item.id == "x"
    assert [turn["content"] for turn in row.conversations] == ["Brief.", "q?", trained]


@pytest.mark.parametrize(
    "source",
    [
        ArithmeticSource(kind="arithmetic"),
        ReasoningGymSource(kind="reasoning-gym", tasks={"gsm_symbolic": 1, "chain_sum": 1}),
    ],
)
def test_generated_answers_are_right_by_their_own_item(source: Any, tmp_path: Path) -> None:
    inputs = Inputs(
        job_id="j",
        adapter="math",
        adapter_dir=tmp_path,
        models_dir=tmp_path,
        locks_dir=tmp_path,
        ollama_host="http://127.0.0.1:1",
    )
    records = open_source(source, inputs, 0, questions=True).records
    for record in islice(records, 60):
        row = record()
        assert row.item is not None
        assert grade(row.item, row.conversations[-1]["content"]).correct
    plain = next(open_source(source, inputs, 0).records)()
    assert plain.item is None
