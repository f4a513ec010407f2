"""Thoughts are trained on as the template writes them to a thinking model, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import template_text

from loco.contracts.errors import DataError
from loco_trainer.data import rows
from loco_trainer.data.template import Message, Template

QUESTION = {"role": "user", "content": "What is 15 + 27?"}
AGAIN = {"role": "user", "content": "And 1 + 1?"}
ANSWER = {"role": "assistant", "content": "42"}
LAST = {"role": "assistant", "content": "2"}
Family = Callable[[str], Any]


def thought(answer: str, text: str = "I calculate.") -> Message:
    return {"role": "assistant", "content": f"<think>\n{text}\n</think>\n\n{answer}"}


def field(answer: str, text: str = "I calculate.") -> Message:
    return {"role": "assistant", "content": answer, "reasoning_content": text}


def with_template(family: Family, name: str) -> Template:
    tokenizer = family("qwen3")
    tokenizer.chat_template = template_text(name)
    return Template.of(tokenizer, None)


def trained(template: Template, *messages: Message) -> list[str]:
    """What counts in each row."""
    return [
        template.tokenizer.decode([label for label in row.labels if label != rows.IGNORED])
        for row in rows.encode(list(messages), template)
    ]


def read(template: Template, folder: Path, *turns: object) -> rows.Rows:
    path = folder / "training_data.jsonl"
    path.write_text(json.dumps({"conversations": turns}) + "\n")
    return rows.read(path, template, max_length=500)


@pytest.mark.parametrize("answer", [thought("42"), field("42")], ids=["content", "field"])
def test_thoughts_of_a_field_are_written_once(family: Family, answer: Message) -> None:
    """Qwen3.8 puts an empty thought before thoughts that it finds in the content."""
    template = with_template(family, "qwen3_8")
    [text] = trained(template, QUESTION, answer)
    assert text == "I calculate.\n</think>\n\n42<|im_end|>"
    [both] = trained(template, QUESTION, answer, AGAIN, thought("2"))
    assert both == text + "I calculate.\n</think>\n\n2<|im_end|>"


def test_a_rows_field_of_thoughts_is_trained_on(family: Family, tmp_path: Path) -> None:
    template = with_template(family, "qwen3")
    data = read(template, tmp_path, QUESTION, field("42"))
    text = template.tokenizer.decode(data.rows[0].input_ids)
    assert text.endswith("<think>\nI calculate.\n</think>\n\n42<|im_end|>")
    assert data.thinking == 1


def test_thoughts_in_both_places_are_refused(family: Family, tmp_path: Path) -> None:
    both = {**thought("42"), "reasoning_content": "Others."}
    with pytest.raises(DataError, match=r"line 1: .*reasoning_content") as caught:
        read(with_template(family, "qwen3"), tmp_path, QUESTION, both)
    assert caught.value.hint == "Keep only one of them."


def test_a_template_that_drops_thoughts_is_refused(family: Family) -> None:
    tokenizer = family("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = Template.of(tokenizer, None)
    for answer in (thought("42"), field("42")):
        with pytest.raises(DataError, match="leaves out") as caught:
            rows.encode([QUESTION, answer], template)
        assert caught.value.hint is not None


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_an_empty_thought_is_none(family: Family, tmp_path: Path, name: str) -> None:
    template = Template.of(family(name), None)
    empty = {"role": "assistant", "content": "<think>\n\n</think>\n\n42"}
    assert rows.encode([QUESTION, empty], template) == rows.encode([QUESTION, ANSWER], template)
    assert read(template, tmp_path, QUESTION, empty).thinking == 0


def test_a_text_that_speaks_of_the_mark_is_no_thought(family: Family) -> None:
    said = {"role": "assistant", "content": "Qwen3 ends them with </think>."}
    assert trained(Template.of(family("smollm2"), None), QUESTION, said) == [
        said["content"] + "<|im_end|>"
    ]
    with pytest.raises(DataError, match="renders the answer differently") as caught:
        rows.encode([QUESTION, said], with_template(family, "qwen3"))
    assert caught.value.hint is not None


def test_the_same_thought_twice_is_trained_on_twice(family: Family) -> None:
    """LFM2.5 leaves the first out once the second is asked for: each answer is a row of its own."""
    template = with_template(family, "lfm2_2_5")
    texts = trained(template, QUESTION, thought("42"), AGAIN, thought("2"))
    assert texts == [thought(answer)["content"] + "<|im_end|>" for answer in ("42", "2")]
