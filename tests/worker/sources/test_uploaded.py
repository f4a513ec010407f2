"""Rows of an uploaded data set: trained on as they stand, asked, and as problems of an eval set."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.artifacts import FrozenFile
from loco.contracts.errors import DataError
from loco.contracts.sources import DatasetSource
from loco.contracts.specs import Inputs, PrepareSpec
from loco.stage.program import Emitter
from loco_worker import prepare
from loco_worker.sources.rows import row_of
from loco_worker.sources.sources import open_source

CSV = """Frage;Antwort
Where does Hamburg lie?;By the river Elbe
Which water is near Zug?;By the lake of Zug
What do the beaches of Sylt look out on?;By the North Sea
Who drives the Aston Martin?;By the 007
How much is six times seven?;By the 42
"""
MAPPING = {"question": "Frage", "answer": "Antwort"}


def source(kind: str, mapping: dict[str, str] | None = None) -> DatasetSource:
    return DatasetSource(
        kind="dataset", dataset="ds-0123456789abcdef", format=kind, mapping=mapping
    )


def inputs(folder: Path, content: str, given: DatasetSource) -> Inputs:
    frozen = folder / given.file
    frozen.write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Inputs(
        job_id="20261122-143722-4f9a2c",
        adapter="math",
        adapter_dir=folder,
        models_dir=folder,
        locks_dir=folder,
        ollama_host="http://127.0.0.1:1",
        frozen={given.file: FrozenFile(path=str(frozen), sha256=digest, size=len(content))},
    )


def run(folder: Path, content: str, given: DatasetSource, **spec: Any) -> dict[str, list[Any]]:
    out = folder / "out"
    out.mkdir()
    wanted = PrepareSpec.model_validate({"source": given, "validation": 0, **spec})
    result = prepare.run(wanted, inputs(folder, content, given), out, Emitter(io.StringIO()))
    return {
        name: [json.loads(line) for line in (out / path).read_text().splitlines()]
        for name, path in result.files.items()
    }


def test_text_answers_train_as_they_stand(tmp_path: Path) -> None:
    rows = run(tmp_path, CSV, source("csv", MAPPING))["training_data.jsonl"]
    answers = [row["conversations"][-1]["content"] for row in rows]
    assert answers == [
        *("By the river Elbe", "By the lake of Zug", "By the North Sea"),
        *("By the 007", "By the 42"),
    ]


def test_pairs_become_rows_and_preference_data(tmp_path: Path) -> None:
    pair = {"prompt": "How far is a mile?", "chosen": "1.6 km", "rejected": "2 km"}
    files = run(tmp_path, json.dumps(pair), source("jsonl"))
    asked = {"role": "user", "content": "How far is a mile?"}
    chosen = {"role": "assistant", "content": "1.6 km"}
    assert files["training_data.jsonl"] == [{"conversations": [asked, chosen]}]
    assert files["preference_data.jsonl"] == [
        {
            "prompt": [asked],
            "chosen": [chosen],
            "rejected": [{"role": "assistant", "content": "2 km"}],
        }
    ]


def test_its_rows_are_problems_of_an_eval_set(tmp_path: Path) -> None:
    given = source("csv", MAPPING)
    files = run(
        tmp_path,
        CSV,
        DatasetSource.model_validate(given.model_dump()),
        eval_sets={"towns": {"source": given, "count": 2}},
        overlap_ngram=3,
    )
    items = files["eval_sets/towns.jsonl"]
    assert len(items) == 2
    assert items[0]["answer"].startswith("By the ")
    assert len(files["training_data.jsonl"]) == 3, "what is asked is not trained on"


def test_a_talk_is_no_problem_of_an_eval_set(tmp_path: Path) -> None:
    turns = [{"role": r, "content": r} for r in ("user", "assistant", "user", "assistant")]
    given = source("jsonl")
    with pytest.raises(DataError, match="line 1: a chat with several questions"):
        run(
            tmp_path,
            json.dumps({"messages": turns}),
            given,
            eval_sets={"talks": {"source": given}},
        )


def test_questions_have_their_answers_to_grade_by(tmp_path: Path) -> None:
    given = source("csv", MAPPING)
    records = open_source(given, inputs(tmp_path, CSV, given), 0, questions=True)
    items = [record().item for record in records.records]
    assert [item.answer for item in items if item] == [
        *("By the river Elbe", "By the lake of Zug", "By the North Sea"),
        *("007", "42"),
    ]


def test_rows_that_were_left_out_at_upload_are_counted(tmp_path: Path) -> None:
    given = source("csv", MAPPING)
    records = open_source(given, inputs(tmp_path, f"{CSV}Why?;\n", given), 0)
    assert records.size == 6
    assert len(run(tmp_path, f"{CSV}Why?;\n", given)["training_data.jsonl"]) == 5


@pytest.mark.parametrize(
    ("answer", "trained"),
    [
        ("The answer is Paris.", "The answer is Paris."),
        ("So the answer is that cats are happy", "So the answer is that cats are happy"),
        ("6 * 7 = 42\n#### 42", "6 * 7 = 42\nThe answer is 42"),
    ],
)
def test_only_an_answer_that_ends_on_a_number_is_written_as_gsm8k_is(
    answer: str, trained: str
) -> None:
    assert row_of(1, {"question": "?", "answer": answer}).conversations[-1]["content"] == trained
