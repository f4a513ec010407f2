"""Training rows: the loss counts on exactly the answer's tokens and its end token."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loco.contracts.errors import DataError
from loco_trainer.data import rows

QUESTION = {"role": "user", "content": "What is 15 + 27?"}
ANSWER = {"role": "assistant", "content": "15 + 27 = 42. The answer is 42"}


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


def counted(row: rows.Row) -> list[int]:
    return [label for label in row.labels if label != rows.IGNORED]


def test_exactly_the_answer_and_its_end_token_count(tokenizer: Any) -> None:
    row = rows.encode([QUESTION, ANSWER], tokenizer, system=None)
    assert tokenizer.decode(counted(row)) == "15 + 27 = 42. The answer is 42<|im_end|>"
    first = row.labels.index(counted(row)[0])
    assert row.labels[:first] == [rows.IGNORED] * first
    assert row.labels[first:] == row.input_ids[first:]  # one run, to the row's end


def test_the_prompt_is_what_serving_sends(tokenizer: Any) -> None:
    row = rows.encode([QUESTION, ANSWER], tokenizer, system="Be brief.")
    prompt = row.input_ids[: -len(counted(row))]
    served = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, QUESTION], add_generation_prompt=True
    )["input_ids"]
    assert prompt == served


def test_a_rows_own_system_prompt_stays(tokenizer: Any) -> None:
    own = {"role": "system", "content": "Mine."}
    row = rows.encode([own, QUESTION, ANSWER], tokenizer, system="Be brief.")
    text = tokenizer.decode(row.input_ids)
    assert "Mine." in text
    assert "Be brief." not in text


def test_only_the_last_of_several_answers_counts(tokenizer: Any) -> None:
    again = {"role": "user", "content": "And 1 + 1?"}
    last = {"role": "assistant", "content": "The answer is 2"}
    row = rows.encode([QUESTION, ANSWER, again, last], tokenizer, system=None)
    assert tokenizer.decode(counted(row)) == "The answer is 2<|im_end|>"


def test_a_thinking_template_counts_no_empty_thought(tokenizer: Any) -> None:
    """Qwen3's template puts an empty thought before a trained answer and before a served one."""
    thinking = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    thinking.chat_template = (
        "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
        "{%- if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n"
        "{%- if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    )
    row = rows.encode([QUESTION, ANSWER], thinking, system=None)
    assert thinking.decode(counted(row)) == "15 + 27 = 42. The answer is 42<|im_end|>"


def test_a_template_that_rewrites_the_answer_is_refused(tokenizer: Any) -> None:
    odd = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    odd.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ add_generation_prompt }}"
    )
    with pytest.raises(DataError, match="chat template"):
        rows.encode([QUESTION, ANSWER], odd, system=None)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def test_long_rows_are_cut_and_rows_without_room_for_an_answer_left_out(
    tokenizer: Any, tmp_path: Path
) -> None:
    short = {"conversations": [QUESTION, ANSWER]}
    cut = {"conversations": [QUESTION, {**ANSWER, "content": "so " * 200}]}
    hopeless = {"conversations": [{**QUESTION, "content": "why " * 200}, ANSWER]}
    data = rows.read(
        write(tmp_path / "t.jsonl", short, cut, hopeless, ""),
        tokenizer,
        system=None,
        max_length=100,
    )
    assert (len(data.rows), data.cut, data.dropped) == (2, 1, 1)
    assert len(data.rows[1].input_ids) == 100
    assert data.tokens == sum(len(r.input_ids) for r in data.rows)


def test_no_row_left_is_an_error_that_names_the_way_out(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"conversations": [QUESTION, ANSWER]})
    with pytest.raises(DataError, match="no row to train on") as caught:
        rows.read(path, tokenizer, system=None, max_length=16)
    assert caught.value.param == "train.max_length"


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        {"question": "x"},
        {"conversations": []},
        {"conversations": [QUESTION]},
        {"conversations": [ANSWER, QUESTION]},
        {"conversations": [{"role": "user"}, ANSWER]},
    ],
)
def test_a_malformed_line_is_named(tokenizer: Any, tmp_path: Path, line: object) -> None:
    path = write(tmp_path / "t.jsonl", {"conversations": [QUESTION, ANSWER]}, line)
    with pytest.raises(DataError, match=r"t\.jsonl, line 2"):
        rows.read(path, tokenizer, system=None, max_length=100)
