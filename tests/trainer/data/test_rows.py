"""Training rows: the loss counts on exactly what the assistant says and the tokens that end it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import FAMILIES

from loco.contracts.errors import DataError
from loco_trainer.data import rows
from loco_trainer.data.template import Template

QUESTION = {"role": "user", "content": "What is 15 + 27?"}
ANSWER = {"role": "assistant", "content": "15 + 27 = 42. The answer is 42"}
AGAIN = {"role": "user", "content": "And 1 + 1?"}
LAST = {"role": "assistant", "content": "The answer is 2"}
THOUGHT = {"role": "assistant", "content": "<think>\n15 + 27 is 42.\n</think>\n\nThe answer is 42"}
Family = Callable[[str], Any]


@pytest.fixture
def template(family: Family) -> Template:
    return Template.of(family("smollm2"), None)


def counted(row: rows.Row) -> list[int]:
    return [label for label in row.labels if label != rows.IGNORED]


def trained_on(row: rows.Row, template: Template) -> list[str]:
    """The texts whose tokens count, in order."""
    runs: list[list[int]] = []
    before = rows.IGNORED
    for label in row.labels:
        if label != rows.IGNORED:
            if before == rows.IGNORED:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [template.tokenizer.decode(run) for run in runs]


def test_exactly_the_answer_and_its_end_token_count(template: Template) -> None:
    [row] = rows.encode([QUESTION, ANSWER], template)
    assert trained_on(row, template) == ["15 + 27 = 42. The answer is 42<|im_end|>"]
    first = row.labels.index(counted(row)[0])
    assert row.labels[:first] == [rows.IGNORED] * first
    assert row.labels[first:] == row.input_ids[first:]  # one run, to the row's end


def test_the_prompt_is_what_serving_sends(family: Family) -> None:
    template = Template.of(family("smollm2"), "Be brief.")
    [row] = rows.encode([QUESTION, ANSWER], template)
    prompt = row.input_ids[: -len(counted(row))]
    served = template.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, QUESTION], add_generation_prompt=True
    )["input_ids"]
    assert prompt == served


def test_a_rows_own_system_prompt_stays(family: Family) -> None:
    template = Template.of(family("smollm2"), "Be brief.")
    own = {"role": "system", "content": "Mine."}
    [row] = rows.encode([own, QUESTION, ANSWER], template)
    text = template.tokenizer.decode(row.input_ids)
    assert "Mine." in text
    assert "Be brief." not in text


def split(
    messages: list[dict[str, str]], tokenizer: Any, system: str | None
) -> tuple[list[int], int]:
    """Prompt and answer tokenized apart, as rows were made before: ids, and where the answer begins."""
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    whole = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    answer, end = whole[len(prompt) :], tokenizer.eos_token
    answer = answer[: answer.rindex(end)] + end
    before = tokenizer.encode(prompt, add_special_tokens=False)
    return before + tokenizer.encode(answer, add_special_tokens=False), len(before)


def some_text(chance: random.Random) -> str:
    parts = [
        "The answer",
        " is",
        " 4",
        "2",
        "\n",
        "\n\n",
        "  ",
        "½ “ü”",
        "🙂",
        "\t",
        "x = 3;",
        "'s",
        "…",
    ]
    return "".join(chance.choices(parts, k=chance.randint(1, 12))) or "."


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", ["qwen3", "smollm2"])
def test_token_ids_are_those_of_prompt_and_answer_tokenized_apart(
    family: Family, name: str, system: str | None
) -> None:
    template = Template.of(family(name), system)
    chance = random.Random(name)
    for _ in range(300):
        messages = [
            {"role": "user", "content": some_text(chance)},
            {"role": "assistant", "content": some_text(chance)},
        ]
        [row] = rows.encode(messages, template)
        ids, border = split(messages, template.tokenizer, system)
        assert row.input_ids == ids, messages
        assert row.labels == [rows.IGNORED] * border + ids[border:], messages


#: What ends a turn in each family.
ENDS = {
    "smollm2": "<|im_end|>",
    **{name: turns[-1] for name, (turns, _) in FAMILIES.items() if name != "cohere"},
    "cohere": "<|END_OF_TURN_TOKEN|>",
}


@pytest.mark.parametrize("name", ENDS)
def test_every_answer_counts_up_to_the_end_of_its_turn(family: Family, name: str) -> None:
    """Not the newline that Gemma, Phi-3 and ChatML put behind it, nor Phi-3's end of text."""
    template = Template.of(family(name), None)
    found = [
        text
        for row in rows.encode([QUESTION, ANSWER, AGAIN, LAST], template)
        for text in trained_on(row, template)
    ]
    assert found == [ANSWER["content"] + ENDS[name], LAST["content"] + ENDS[name]]


@pytest.mark.parametrize("name", ENDS)
def test_each_answer_follows_the_tokens_it_is_asked_with(family: Family, name: str) -> None:
    template = Template.of(family(name), None)
    made = rows.encode([QUESTION, ANSWER, AGAIN, LAST], template)
    assert len(made) == (2 if name == "qwen3" else 1)  # Qwen3 drops the empty thought of the first
    for turns, content in (([QUESTION], ANSWER), ([QUESTION, ANSWER, AGAIN], LAST)):
        asked = template.encode(template.prompt(turns))
        row = next(r for r in made if r.input_ids[: len(asked)] == asked)
        assert row.labels[len(asked)] == row.input_ids[len(asked)]
        assert template.tokenizer.decode(row.input_ids[len(asked) :]).startswith(content["content"])
        assert row.labels[len(asked) - 1] == rows.IGNORED


@pytest.mark.parametrize(
    "name", [name for name in ENDS if name not in ("smollm2", "llama3_1", "llama3_2")]
)
def test_marks_and_splitting_agree(family: Family, name: str) -> None:
    marked = Template.of(family(name), None)
    assert marked.marked is not None
    unmarked = Template(marked.tokenizer, marked.system, None)
    for messages in ([QUESTION, ANSWER], [QUESTION, ANSWER, AGAIN, LAST]):
        assert rows.encode(messages, marked) == rows.encode(messages, unmarked)


def test_a_templates_own_marks_are_used(family: Family) -> None:
    """Here the template's answer ends with a token that only the mark shows not to be the model's."""
    tokenizer = family("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        " (said)\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = Template.of(tokenizer, None)
    for messages in ([QUESTION, ANSWER], [QUESTION, ANSWER, AGAIN, LAST]):
        for row in rows.encode(messages, template):
            assert "(said)" not in "".join(trained_on(row, template))
            assert trained_on(row, template)[0] == ANSWER["content"] + "<|im_end|>"


def test_thoughts_are_trained_on_where_the_template_has_them(family: Family) -> None:
    template = Template.of(family("qwen3"), None)
    [row] = rows.encode([QUESTION, THOUGHT], template)
    assert trained_on(row, template) == [THOUGHT["content"] + "<|im_end|>"]
    asked = template.encode(template.prompt([QUESTION], think=True))
    assert row.input_ids[: len(asked)] == asked
    assert row.labels[len(asked)] != rows.IGNORED


def test_earlier_thoughts_are_left_out_as_a_server_leaves_them_out(family: Family) -> None:
    template = Template.of(family("qwen3"), None)
    first, second = rows.encode([QUESTION, THOUGHT, AGAIN, LAST], template)
    assert trained_on(first, template) == [THOUGHT["content"] + "<|im_end|>"]
    assert "15 + 27 is 42" not in template.tokenizer.decode(second.input_ids)
    assert trained_on(second, template) == [LAST["content"] + "<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "messages", "message", "hint"),
    [
        ("smollm2", [QUESTION, THOUGHT], "has no place for", "Leave the thoughts out"),
        ("gemma", [{"role": "system", "content": "x"}, QUESTION, ANSWER], "System role", "roles"),
        ("gemma", [QUESTION, AGAIN, ANSWER], "must alternate", "roles"),
    ],
)
def test_what_a_template_cannot_do_names_line_and_fix(
    family: Family, tmp_path: Path, name: str, messages: Any, message: str, hint: str
) -> None:
    lines = [{"conversations": [QUESTION, ANSWER]}, {"conversations": messages}]
    path = write(tmp_path / "training_data.jsonl", *lines)
    with pytest.raises(DataError, match=message) as caught:
        rows.read(path, Template.of(family(name), None), max_length=500)
    assert caught.value.message.startswith("training_data.jsonl, line 2: ")
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_a_thinking_template_counts_no_empty_thought(family: Family) -> None:
    """Qwen3's template puts an empty thought before a trained answer and before a served one."""
    template = Template.of(family("qwen3"), None)
    [row] = rows.encode([QUESTION, ANSWER], template)
    assert "<think>\n\n</think>\n\n" in template.tokenizer.decode(row.input_ids)
    assert trained_on(row, template) == ["15 + 27 = 42. The answer is 42<|im_end|>"]


def test_a_template_that_rewrites_the_answer_is_refused(family: Family) -> None:
    odd = family("smollm2")
    odd.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ add_generation_prompt }}"
    )
    with pytest.raises(DataError, match="chat template"):
        rows.encode([QUESTION, ANSWER], Template.of(odd, None))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # Mistral's: the space before the answer belongs to the answer
        ("{{ bos_token }}[INST] Q [/INST]|{{ ' ' + content + eos_token }}", ["▁The", "▁answer"]),
        # Vicuna's: it ends the prompt, whose last token stays as it is served
        ("{{ bos_token }}USER: Q ASSISTANT: |{{ content + eos_token }}", ["The", "▁answer"]),
    ],
)
def test_a_sentencepiece_model_is_trained_on_no_doubled_space(
    sentencepiece: Any, form: str, expected: list[str]
) -> None:
    asked, _, said = form.partition("|")
    sentencepiece.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}"
        + asked
        + "{% else %}"
        + said.replace("content", "m.content")
        + "{% endif %}{% endfor %}"
    )
    template = Template.of(sentencepiece, None)
    [row] = rows.encode([QUESTION, LAST], template)
    prompt = template.encode(template.prompt([QUESTION]))
    assert row.input_ids[: len(prompt)] == prompt
    tokens = sentencepiece.convert_ids_to_tokens(counted(row))
    assert "".join(tokens).startswith("".join(expected))
    assert "▁" not in tokens
    assert tokens[-1] == "</s>"
    assert "  " not in sentencepiece.decode(row.input_ids, skip_special_tokens=True)


def test_a_template_that_ends_no_turn_is_given_an_end(family: Family) -> None:
    tokenizer = family("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = Template.of(tokenizer, None)
    made = rows.encode([QUESTION, ANSWER, AGAIN, LAST], template)
    assert [row.input_ids[-1] for row in made] == [tokenizer.eos_token_id] * 2


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def test_long_rows_are_cut_and_rows_without_room_for_an_answer_left_out(
    template: Template, tmp_path: Path
) -> None:
    short = {"conversations": [QUESTION, ANSWER]}
    cut = {"conversations": [QUESTION, {**ANSWER, "content": "so " * 200}]}
    hopeless = {"conversations": [{**QUESTION, "content": "why " * 200}, ANSWER]}
    data = rows.read(
        write(tmp_path / "t.jsonl", short, cut, hopeless, ""),
        template,
        max_length=100,
    )
    assert (len(data.rows), data.cut, data.dropped) == (2, 1, 1)
    assert len(data.rows[1].input_ids) == 100
    assert data.tokens == sum(len(r.input_ids) for r in data.rows)


def test_no_row_left_is_an_error_that_names_the_way_out(template: Template, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"conversations": [QUESTION, ANSWER]})
    with pytest.raises(DataError, match="no row to train on") as caught:
        rows.read(path, template, max_length=16)
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
def test_a_malformed_line_is_named(template: Template, tmp_path: Path, line: object) -> None:
    path = write(tmp_path / "t.jsonl", {"conversations": [QUESTION, ANSWER]}, line)
    with pytest.raises(DataError, match=r"t\.jsonl, line 2"):
        rows.read(path, template, max_length=100)


def test_a_greeting_before_the_first_question_is_not_trained_on(
    family: Family, tmp_path: Path
) -> None:
    greeting = {"role": "assistant", "content": "How can I help?"}
    template = Template.of(family("qwen3"), None)
    [row] = rows.encode([greeting, QUESTION, ANSWER], template)
    assert trained_on(row, template) == [ANSWER["content"] + "<|im_end|>"]
    assert "How can I help?" in template.tokenizer.decode(row.input_ids)
    path = write(tmp_path / "t.jsonl", {"conversations": [greeting, greeting]})
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: an answer has no user turn") as caught:
        rows.read(path, template, max_length=100)
    assert caught.value.hint is not None


@pytest.mark.parametrize("content", [None, 4, ["a"]])
def test_a_content_that_is_no_text_is_malformed(
    template: Template, tmp_path: Path, content: object
) -> None:
    path = write(
        tmp_path / "t.jsonl", {"conversations": [QUESTION, {**ANSWER, "content": content}]}
    )
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: not a chat row"):
        rows.read(path, template, max_length=100)


def test_an_end_of_turn_outside_the_marks_counts(family: Family) -> None:
    """Not the end of text, which the template never writes there."""
    tokenizer = family("smollm2")
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = Template.of(tokenizer, None)
    for messages in ([QUESTION, ANSWER], [QUESTION, ANSWER, AGAIN, LAST]):
        [row] = rows.encode(messages, template)
        said = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
        assert trained_on(row, template) == said


def test_answers_in_a_row_count_without_what_the_template_puts_between(family: Family) -> None:
    tokenizer = family("smollm2")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
        "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = Template.of(tokenizer, None)
    [row] = rows.encode([QUESTION, ANSWER, LAST], template)
    assert trained_on(row, template) == [m["content"] + "<|im_end|>" for m in (ANSWER, LAST)]


@pytest.mark.parametrize(
    ("name", "counts"),
    # one row that is cut in an answer; Qwen3 has a row for each answer, of which one is cut
    [("smollm2", (1, 1, 0)), ("qwen3", (2, 1, 1))],
)
def test_answers_beyond_the_longest_length_are_counted(
    family: Family, tmp_path: Path, name: str, counts: tuple[int, int, int]
) -> None:
    template = Template.of(family(name), "Be brief.")
    long = {"role": "assistant", "content": "so " * 100}
    path = write(
        tmp_path / "t.jsonl", {"conversations": [QUESTION, ANSWER, AGAIN, long, AGAIN, LAST]}
    )
    data = rows.read(path, template, max_length=100)
    assert (len(data.rows), data.cut, data.dropped) == counts
    assert (data.lost, data.conversations) == (1, 1)
    assert [len(row.input_ids) for row in data.rows][-1] == 100


def test_a_row_cut_within_a_question_ends_with_its_last_whole_answer(
    template: Template, tmp_path: Path
) -> None:
    why = {"role": "user", "content": "why " * 200}
    path = write(tmp_path / "t.jsonl", {"conversations": [QUESTION, ANSWER, why, LAST]})
    data = rows.read(path, template, max_length=100)
    assert (len(data.rows), data.cut, data.dropped, data.lost) == (1, 0, 0, 1)
    assert data.rows == rows.encode([QUESTION, ANSWER], template)
