"""Pairs of answers as rows: TRL's conversational preference format."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loco.contracts.errors import DataError
from loco_trainer.data import pairs, rows
from loco_trainer.data.rows import IGNORED
from loco_trainer.data.template import Template


@pytest.fixture(scope="module")
def template(smollm2_dir: Path) -> Template:
    return Template.of(AutoTokenizer.from_pretrained(smollm2_dir), "You answer sums.")


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def pair(question: str, chosen: str, rejected: str, *before: dict[str, str]) -> dict[str, Any]:
    return {
        "prompt": [*before, said("user", question)],
        "chosen": [said("assistant", chosen)],
        "rejected": [said("assistant", rejected)],
    }


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_both_answers_are_tokenized_as_training_rows_are(
    template: Template, tmp_path: Path
) -> None:
    path = written(tmp_path / "p.jsonl", pair("What is 2 + 3?", "5", "The answer is 6"))
    (found,) = pairs.read(path, template, max_length=128).pairs
    for row, answer in zip(found.rows, ("5", "The answer is 6"), strict=True):
        turns = [said("user", "What is 2 + 3?"), said("assistant", answer)]
        assert [row] == rows.encode(turns, template)
    begun = [row.labels.index(next(n for n in row.labels if n != IGNORED)) for row in found.rows]
    assert begun[0] == begun[1]
    assert found.chosen.input_ids[: begun[0]] == found.rejected.input_ids[: begun[0]]


def test_earlier_answers_of_the_prompt_do_not_count(template: Template, tmp_path: Path) -> None:
    before = (said("user", "Say one."), said("assistant", "one"))
    path = written(tmp_path / "p.jsonl", pair("Say two.", "two", "three", *before))
    (found,) = pairs.read(path, template, max_length=128).pairs
    for row, answer in zip(found.rows, ("two", "three"), strict=True):
        counted = [token for token in row.labels if token != IGNORED]
        assert template.tokenizer.decode(counted) == f"{answer}<|im_end|>"
        assert "one" in template.tokenizer.decode(row.input_ids)


def test_pairs_with_an_answer_beyond_the_longest_length_are_left_out(
    template: Template, tmp_path: Path
) -> None:
    long = "so " * 200
    path = written(
        tmp_path / "p.jsonl", pair("2?", "2", "3"), pair("2?", long, "3"), pair("2?", "2", long)
    )
    found = pairs.read(path, template, max_length=100)
    assert (len(found.pairs), found.left_out) == (1, 2)
    with pytest.raises(DataError, match="has no pair to train on") as caught:
        pairs.read(path, template, max_length=16)
    assert caught.value.param == "train.max_length"


@pytest.mark.parametrize(
    "line",
    [
        {"conversations": [said("user", "2?"), said("assistant", "2")]},
        pair("2?", "2", "3") | {"chosen": [said("user", "2")]},
        pair("2?", "2", "3") | {"rejected": []},
        pair("2?", "2", "3") | {"rejected": "3"},
        pair("2?", "2", "2"),
        pair("2?", "2", "3") | {"prompt": []},
    ],
)
def test_a_malformed_line_is_named(template: Template, tmp_path: Path, line: Any) -> None:
    path = written(tmp_path / "p.jsonl", pair("2?", "2", "3"), line)
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: "):
        pairs.read(path, template, max_length=128)


def test_answers_that_a_template_writes_alike_are_the_same(family: Any, tmp_path: Path) -> None:
    """Llama 3's strips the space around an answer."""
    path = written(tmp_path / "p.jsonl", pair("2?", "2", "3"), pair("2?", "2", "2 \n"))
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: chosen and rejected are the same"):
        pairs.read(path, Template.of(family("llama3"), None), max_length=128)


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_thoughts_are_in_one_place_as_in_rows(family: Any, tmp_path: Path, name: str) -> None:
    line = pair("And 1?", "2", "3", said("user", "2?"), said("assistant", "2"))
    place = 1 if name == "prompt" else 0
    line[name][place] |= {"content": "<think>\nA.\n</think>\n\n2", "reasoning_content": "B."}
    path = written(tmp_path / "p.jsonl", line)
    with pytest.raises(
        DataError, match=r"line 1: .*`content` and in `reasoning_content`"
    ) as caught:
        pairs.read(path, Template.of(family("qwen3"), None), max_length=128)
    assert caught.value.hint == "Keep only one of them."


def test_an_empty_file_says_what_makes_pairs(template: Template, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        pairs.read(written(tmp_path / "p.jsonl"), template, max_length=128)
    assert caught.value.param == "train.preference"
    assert "prepare.source.pairs" in (caught.value.hint or "")
