"""Source huggingface through the real `datasets` library, against a small hub of our own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from small_hub import hub_of

from loco.contracts.specs import Inputs, StageRun
from loco.contracts.stages import Stage

pytestmark = [pytest.mark.redis, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train.jsonl
  - split: test
    path: main/test.jsonl
---
"""
ROWS = [
    {"question": f"Ann has {n} pens. How many?", "answer": f"She has <<{n}={n}>>{n}.\n#### {n}"}
    for n in range(30)
]
TESTED = [
    {"question": f"Bo eats {n} of his eggs. How many?", "answer": f"<<{n}={n}>>{n}\n#### {n}"}
    for n in range(12)
]
FILES = {
    "README.md": CARD.encode(),
    "main/train.jsonl": "".join(json.dumps(r) + "\n" for r in ROWS).encode(),
    "main/test.jsonl": "".join(json.dumps(r) + "\n" for r in [*TESTED, ROWS[3]]).encode(),
}


@pytest.fixture
def hub(serve: Callable[[type[BaseHTTPRequestHandler]], str]) -> str:
    """The hub's address."""
    return serve(hub_of({"team/sums": FILES}))


def prepare(
    folder: Path, hub: str, sets: dict[str, Any] | None = None, **source: Any
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]], Path]:
    """Runs the stage in a process of its own: `datasets` reads its variables on import."""
    adapter = folder / "adapters" / "math"
    adapter.mkdir(parents=True)
    benchmark = REPOSITORY / "adapters/math/eval_dataset.jsonl"
    (adapter / "eval_dataset.jsonl").write_bytes(benchmark.read_bytes())
    inputs = Inputs(
        job_id="j",
        adapter="math",
        adapter_dir=adapter,
        models_dir=folder,
        locks_dir=folder,
        ollama_host="http://127.0.0.1:9",
    )
    spec = {"source": {"kind": "huggingface", **source}, "examples": 20}
    spec["eval_sets"] = sets or {}
    file = folder / "spec.json"
    file.write_text(StageRun(stage=Stage.PREPARE, spec=spec, inputs=inputs).model_dump_json())
    out = folder / "out"
    ended = subprocess.run(
        [sys.executable, "-m", "loco_worker.prepare", "--spec", str(file), "--out", str(out)],
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended, [json.loads(line) for line in ended.stdout.splitlines()], out


def test_rows_of_a_hub_data_set_become_training_data(hub: str, tmp_path: Path) -> None:
    ended, _, out = prepare(tmp_path, hub, dataset="team/sums")
    assert ended.returncode == 0, ended.stderr
    result = json.loads((out / "result.json").read_text())
    assert (result["read"], result["kept"]) == (30, 20)
    assert "team/sums main train" in result["source"]
    rows = [json.loads(line) for line in (out / "training_data.jsonl").read_text().splitlines()]
    for row in rows:
        question, answer = (turn["content"] for turn in row["conversations"])
        number = question.split()[2]
        assert answer == f"She has {number}.\nThe answer is {number}"


def test_an_eval_set_of_a_hub_data_set_is_sampled_and_kept_apart(hub: str, tmp_path: Path) -> None:
    source = {"kind": "huggingface", "dataset": "team/sums", "split": "test"}
    sets = {"held_out": {"source": source, "count": 5}, "whole": {"source": source}}
    ended, _, out = prepare(tmp_path, hub, sets, dataset="team/sums")
    assert ended.returncode == 0, ended.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["eval_sets"] == {"held_out": 5, "whole": 13}
    part, whole = (
        [json.loads(line) for line in (out / f"eval_sets/{name}.jsonl").read_text().splitlines()]
        for name in ("held_out", "whole")
    )
    assert [row["id"] for row in whole] == [str(n) for n in range(1, 14)]
    assert [row["answer"] for row in whole] == [*map(str, range(12)), "3"]
    assert all(row in whole for row in part)
    # the one training row that is in the test split too is left out
    assert result["dropped"]["overlap"] == 1
    assert result["overlaps"][0]["row"] == 4


def test_too_few_problems_and_no_such_split_name_the_set(hub: str, tmp_path: Path) -> None:
    source = {"kind": "huggingface", "dataset": "team/sums", "split": "test"}
    for number, (entry, param) in enumerate(
        (
            ({"source": source, "count": 14}, "eval.sets.mine.count"),
            ({"source": source | {"split": "dev"}}, "eval.sets.mine.source"),
        )
    ):
        ended, events, _ = prepare(
            tmp_path / str(number), hub, {"mine": entry}, dataset="team/sums"
        )
        assert ended.returncode == 1
        assert events[-1]["error"]["param"] == param, ended.stderr
        assert events[-1]["error"]["hint"]


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ({"dataset": "team/other"}, "source_unreachable", "team/other"),
        ({"dataset": "team/sums", "config": "socratic"}, "invalid_request", "main"),
        ({"dataset": "team/sums", "split": "dev"}, "invalid_request", "train"),
    ],
)
def test_what_the_hub_does_not_have_is_said(
    hub: str, tmp_path: Path, source: dict[str, str], code: str, words: str
) -> None:
    ended, events, out = prepare(tmp_path, hub, **source)
    assert ended.returncode == 1
    error = events[-1]["error"]
    assert error["code"] == code, ended.stderr
    assert words in error["message"]
    assert error["hint"]
    assert not (out / "training_data.jsonl").exists()


def named_only(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """A data set without a card: its one configuration is `default`."""
    return {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def test_questions_with_distractors_become_questions_with_options(
    serve: Callable[[type[BaseHTTPRequestHandler]], str], tmp_path: Path
) -> None:
    """The columns of allenai/sciq, as rows and as problems."""
    rows = [
        {
            "question": f"Which number follows {n}?",
            "distractor3": str(n + 7),
            "distractor1": str(n + 3),
            "distractor2": str(n + 5),
            "correct_answer": str(n + 1),
            "support": "",
        }
        for n in range(30)
    ]
    hub = serve(hub_of({"team/choices": named_only(rows)}))
    source = {"dataset": "team/choices", "config": "default"}
    sets = {"held_out": {"source": {"kind": "huggingface", **source}, "count": 5}}
    ended, _, out = prepare(tmp_path, hub, sets, **source)
    assert ended.returncode == 0, ended.stderr
    taught = [json.loads(line) for line in (out / "training_data.jsonl").read_text().splitlines()]
    assert len(taught) == 20
    asked, answered = (turn["content"] for turn in taught[0]["conversations"])
    assert f") {answered}" in asked
    problem = json.loads((out / "eval_sets/held_out.jsonl").read_text().splitlines()[0])
    assert problem["grader"]["kind"] == "choice"
    assert problem["answer"] in problem["grader"]["options"].values()


def test_alpacas_columns_train_on_instruction_input_and_output(
    serve: Callable[[type[BaseHTTPRequestHandler]], str], tmp_path: Path
) -> None:
    """The columns of iamtarun/python_code_instructions_18k_alpaca: `prompt` repeats the others."""
    rows = [
        {
            "instruction": f"Write a function that adds {n}.",
            "input": f"case {n}" if n % 2 else "",
            "output": f"def add(x):\n    return x + {n}",
            "prompt": f"Below is an instruction. ### Instruction: adds {n} ### Output:",
        }
        for n in range(30)
    ]
    hub = serve(hub_of({"team/alpaca": named_only(rows)}))
    ended, _, out = prepare(tmp_path, hub, dataset="team/alpaca", config="default")
    assert ended.returncode == 0, ended.stderr
    for line in (out / "training_data.jsonl").read_text().splitlines():
        asked, answered = (turn["content"] for turn in json.loads(line)["conversations"])
        assert asked.startswith("Write a function that adds")
        assert "Below" not in asked
        assert "\n    return x + " in answered
