"""Which template renders, and what it renders to."""

import random

import pytest
from chat_families import template_text
from transformers.utils.chat_template_utils import render_jinja_template

from loco_modelhost.answers.thinking import ThinkingSplitter, without_thinking
from loco_modelhost.prompts import known, templates
from loco_modelhost.requests.refusals import Refusal
from loco_modelhost.store.gguf_file import GgufFile
from loco_trainer.data import served

#: The parts of Qwen3's template that decide: tools, thinking, and the empty block of think:false.
QWEN3_LIKE = """
{%- if tools %}
    {{- 'tools' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2 + 2? “ü”"},
]


@pytest.fixture(scope="module")
def smollm2(weights_path) -> str:
    return GgufFile.read(weights_path).chat_template


def jinja(template: str, *, think: bool = True, add_bos: bool = False, bos: str = "<s>") -> str:
    return templates.render_jinja(
        template, CONVERSATION, bos=bos, eos="</s>", think=think, add_bos=add_bos
    )


def stored(name: str) -> str:
    return known._known(name).text


def test_smollm2_is_taken_for_chatml(smollm2):
    assert known.detected(smollm2).name == "chatml"
    assert "named SmolLM" in smollm2  # the default system prompt that is dropped


def test_others_are_not(smollm2):
    for other in (
        QWEN3_LIKE,
        "",
        smollm2 + "{# " + "x" * 100 + " #}",
    ):
        assert known.detected(other) is None


@pytest.mark.parametrize(
    ("name", "taken_for"),
    [
        ("gemma", "gemma-instruct"),
        ("gemma3", "gemma3-instruct"),
        ("llama3", "llama3-instruct"),
        ("llama3_1", "llama3-instruct"),
        ("phi3", "zephyr"),
        *((name, None) for name in ("qwen3", "qwen2_5", "llama3_2", "phi3_5", "cohere")),
    ],
)
def test_what_a_familys_template_is_taken_for(name, taken_for):
    text = template_text(name)
    found = known.detected(text)
    assert (found.name if found else None) == taken_for
    # the comment of what export embeds keeps it away
    assert known.detected(served.embedded(text, think=False, title="m, job 1, today")) is None


def test_chatml_equals_the_jinja_original_when_a_system_prompt_is_set(smollm2):
    assert known.render_stored(stored("chatml"), CONVERSATION) == jinja(smollm2)


def test_chatml_merges_turns_of_one_role():
    twice = [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}]
    assert known.render_stored(stored("chatml"), twice) == (
        "<|im_start|>user\nA\n\nB<|im_end|>\n<|im_start|>assistant\n"
    )


def test_gemma_and_llama_as_go_renders_them():
    assert known.render_stored(stored("gemma3-instruct"), CONVERSATION[:2]) == (
        "<start_of_turn>user\nBe brief.\n\n1 + 1?<end_of_turn>\n<start_of_turn>model\n\n"
    )
    assert known.render_stored(stored("gemma-instruct"), CONVERSATION) == (
        "<start_of_turn>user\nBe brief.\n1 + 1?<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n"
        "<start_of_turn>user\n2 + 2? “ü”<end_of_turn>\n<start_of_turn>model\n"
    )
    assert known.render_stored(stored("llama3-instruct"), CONVERSATION[1:2]) == (
        "<|start_header_id|>user<|end_header_id|>\n\n1 + 1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("think", [True, False])
def test_jinja_renders_like_transformers(smollm2, think):
    for template in (smollm2, QWEN3_LIKE):
        expected, _ = render_jinja_template(
            conversations=[CONVERSATION],
            chat_template=template,
            add_generation_prompt=True,
            enable_thinking=think,
            bos_token="<s>",
            eos_token="</s>",
        )
        assert jinja(template, think=think) == expected[0]


def test_bos_is_not_doubled():
    template = "{{ bos_token }}{{ messages[0].content }}"
    assert jinja(template) == "<s>Be brief."
    assert jinja(template, add_bos=True) == "Be brief."


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system role') }}", "{% for %}", "{{ ''.__class__.__mro__ }}"],
)
def test_template_errors_are_refusals(template):
    with pytest.raises(Refusal, match="chat template error"):
        jinja(template)


def test_go_templates_that_cannot_be_rendered_are_refused():
    known.check_stored(stored("chatml"))
    known.check_stored(known.PROMPT_ONLY)
    with pytest.raises(Refusal, match="Leave `template` out"):
        known.check_stored("{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}")


def test_edits():
    assert known.edits("kitten", "sitting", 100) == 3
    assert known.edits("", "abc", 100) == 3
    assert known.edits("same", "same", 100) == 0
    assert known.edits("a" * 50, "b" * 50, 20) == 20


@pytest.mark.parametrize(
    ("prompt", "text", "thinking", "content"),
    [
        ("", "<think>\nhm\n</think>\n\n42", "hm", "42"),
        ("…<think>\n", "hm</think>42", "hm", "42"),
        ("", "42 <think> no", "", "42 <think> no"),
        ("", "<think>never closed", "never closed", ""),
    ],
)
def test_thinking_is_split_however_it_is_cut(prompt, text, thinking, content):
    chance = random.Random(text)
    for _ in range(50):
        splitter, parts, at = ThinkingSplitter(prompt, active=True), [], 0
        while at < len(text):
            size = chance.randint(1, 5)
            parts.append(splitter.add(text[at : at + size]))
            at += size
        parts.append(splitter.flush())
        assert "".join(t for t, _ in parts).strip() == thinking
        assert "".join(c for _, c in parts) == content


def test_thinking_off_leaves_the_text_alone():
    assert ThinkingSplitter("", active=False).add("<think>x</think>") == ("", "<think>x</think>")


def test_earlier_reasoning_is_left_out():
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>why</think>\n\nb"},
        {"role": "user", "content": "c"},
    ]
    assert [t["content"] for t in without_thinking(turns)] == ["a", "b", "c"]
