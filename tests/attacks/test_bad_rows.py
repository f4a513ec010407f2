"""One row that breaks what reads it.

Before: a number of 5,000 digits, half a surrogate pair or NaN in one of ten thousand rows ended the job
with `internal`, after the model had been asked or the rows were half written.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import DataError
from loco.contracts.evaluation import ItemSource
from loco.contracts.sources import JsonlSource
from loco.contracts.specs import Inputs, PrepareSpec
from loco.datasets import values
from loco.grading import eval_items
from loco.grading.graders import grade
from loco.stage.program import Emitter
from loco_worker import prepare

GOOD = [{"question": f"What is {n} plus {n}, Ann?", "answer": f"#### {2 * n}"} for n in range(1, 9)]
#: The row to the beginning of what the log says of it.
BAD = {
    f'{{"question": "Q", "answer": {"9" * 5000}}}': "a number of 5,000 digits",
    f'{{"question": "Q", "answer": "#### 1", "id": -{"9" * 5000}}}': "a number of 5,001 digits",
    '{"question": "Q \\ud800?", "answer": "#### 1"}': "half a surrogate pair",
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\udfff 1"}]}': (
        "half a surrogate pair"
    ),
    '{"question": "Q", "answer": NaN}': "NaN is not a JSON number",
    '{"question": "Q", "answer": "#### 1", "x": -Infinity}': "-Infinity is not a JSON number",
    f'{{"question": "Q", "answer": "#### 1", "x": {"[" * 100_000}{"]" * 100_000}}}': "nested too deep",
    f'{{"question": "Q", "answer": "#### {"7" * 5000}"}}': "no number at the end",
    '{"messages": [{"role": "\\ud800", "content": "a"}]}': "role",
    "[1, 2]": "not a JSON object",
}


class Heard:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        text.encode()
        self.text += text

    def flush(self) -> None:
        pass


def run(tmp_path: Path, lines: list[str], **spec: Any) -> tuple[Any, str]:
    folder = tmp_path / "math"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    inputs: dict[str, Any] = dict.fromkeys(("models_dir", "locks_dir"), tmp_path)
    given = Inputs(
        job_id="j", adapter="math", adapter_dir=folder, ollama_host="http://127.0.0.1:9", **inputs
    )
    source = JsonlSource(kind="jsonl", path="rows.jsonl")
    heard = Heard()
    (tmp_path / "out").mkdir(exist_ok=True)
    wanted = PrepareSpec(source=source, validation=0, **spec)
    result = prepare.run(wanted, given, tmp_path / "out", Emitter(heard))  # type: ignore[arg-type]
    return result, heard.text


@pytest.mark.parametrize("bad", BAD, ids=BAD.values())
def test_it_is_dropped_with_its_number(bad: str, tmp_path: Path) -> None:
    good = [json.dumps(row) for row in GOOD]
    result, heard = run(tmp_path, [*good[:4], bad, *good[4:]])
    assert (result.read, result.kept, result.dropped.malformed) == (9, 8, 1)
    assert f"dropped: row 5: {BAD[bad]}" in heard
    assert len((tmp_path / "out" / "training_data.jsonl").read_bytes().splitlines()) == 8


def test_a_line_too_long_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LONGEST_LINE", 1000)
    lines = [json.dumps(row) for row in GOOD]
    result, heard = run(
        tmp_path, [*lines, json.dumps({"question": "Q" * 1000, "answer": "#### 1"})]
    )
    assert (result.kept, result.dropped.malformed) == (8, 1)
    assert "row 9: longer than 1,000 characters" in heard


def test_rows_that_are_all_bad_are_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 malformed") as caught:
        run(tmp_path, list(BAD))
    assert caught.value.param == "prepare.source"


# an answer that is text of 5,000 digits is compared as words
@pytest.mark.parametrize("bad", [line for line in BAD if "7777" not in line])
def test_in_an_eval_set_it_is_an_error_that_names_the_line(bad: str, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in GOOD]
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "set.jsonl").write_text("\n".join([*lines[:2], bad, *lines[2:]]))
    source = ItemSource(source=JsonlSource(kind="jsonl", path="set.jsonl"))
    with pytest.raises(DataError, match=r"set\.jsonl, line 3"):
        run(tmp_path, lines, eval_sets={"mine": source})


@pytest.mark.parametrize(
    "text", ["9" * 5000, "\ud800 The answer is 5", "[" * 40_000, "\x00 5", "1/0"]
)
@pytest.mark.parametrize("grader", ["numeric", "words", {"kind": "json", "expected": 5}])
def test_an_answer_of_a_model_gets_a_verdict(text: str, grader: object) -> None:
    item = eval_items.EvalItem.model_validate(
        {"id": "1", "question": "Q", "answer": "5", "grader": grader}
    )
    assert grade(item, text).why is None or not grade(item, text).correct
