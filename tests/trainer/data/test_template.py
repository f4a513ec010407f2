"""The template of a training says the same wherever and whenever it is rendered."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from chat_families import template_text

from loco.contracts.errors import DataError
from loco_trainer.data.template import Template

QUESTION = {"role": "user", "content": "What is 15 + 27?"}
Family = Callable[[str], Any]


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2", "gptoss"])
def test_todays_date_is_not_in_the_prompt(family: Family, name: str) -> None:
    tokenizer = family("llama3_2")
    tokenizer.chat_template = template_text(name)
    template = Template.of(tokenizer, None)
    prompt = template.prompt([QUESTION])
    assert "26 Jul 2024" in prompt or "2024-07-26" in prompt
    assert str(datetime.now().astimezone().year) not in prompt
    # llama.cpp's server hands Llama 3's template the date it has
    served = tokenizer.apply_chat_template(
        [QUESTION], tokenize=False, add_generation_prompt=True, date_string="24 Nov 2026"
    )
    assert served == prompt


def test_what_is_saved_renders_the_same(family: Family, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = Template.of(family("llama3_2"), None)
    template.tokenizer.save_pretrained(tmp_path)
    again = Template.of(AutoTokenizer.from_pretrained(tmp_path), None)
    assert again.tokenizer.chat_template == template.tokenizer.chat_template
    assert again.prompt([QUESTION]) == template.prompt([QUESTION])


def test_a_clock_that_cannot_be_settled_is_refused(family: Family) -> None:
    tokenizer = family("qwen3")
    tokenizer.chat_template = "{{ strftime_now(form) }}"
    with pytest.raises(DataError, match="uses the current date") as caught:
        Template.of(tokenizer, None)
    assert caught.value.hint is not None
    assert "fixed date" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("qwen2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        ("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        *((name, None) for name in ("qwen3", "llama3", "llama3_2", "gemma", "gemma3", "phi3")),
    ],
)
def test_the_templates_own_system_prompt_is_found(
    family: Family, name: str, system: str | None
) -> None:
    template = Template.of(family(name), None)
    assert template.system == system
    # said explicitly, as register sends it, it is the text the template writes by itself
    by_itself = template.tokenizer.apply_chat_template(
        [QUESTION], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert template.prompt([QUESTION]) == by_itself


def test_the_recipes_system_prompt_comes_first(family: Family) -> None:
    template = Template.of(family("qwen2_5"), "Be brief.")
    assert template.system == "Be brief."
    assert template.prompt([QUESTION]).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    own = {"role": "system", "content": "Mine."}
    assert "Be brief." not in template.prompt([own, QUESTION])


def test_marks_train_and_are_not_served(family: Family) -> None:
    """A server that does not know `{% generation %}` can render what is saved."""
    tokenizer = family("llama3")
    plain = Template.of(family("llama3"), None)
    tokenizer.chat_template = template_text("llama3_training")
    template = Template.of(tokenizer, None)
    assert template.marked is not None
    assert "generation %}" not in tokenizer.chat_template.partition("-#}")[2]
    assert template.prompt([QUESTION]) == plain.prompt([QUESTION])


def test_a_tokenizer_without_a_template_is_refused(family: Family) -> None:
    tokenizer = family("qwen3")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template") as caught:
        Template.of(tokenizer, None)
    assert caught.value.param == "base_model"


def test_the_model_host_renders_what_is_trained_on(family: Family) -> None:
    """Its sandbox, with the clock of today, against the trainer's text."""
    from loco_modelhost.prompts import templates

    turns = [QUESTION, {"role": "assistant", "content": "42"}, {"role": "user", "content": "“ü”?"}]
    for name in ("qwen3", "qwen2_5", "llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "phi3"):
        template = Template.of(family(name), None)
        for messages in ([QUESTION], turns):
            system = [{"role": "system", "content": template.system}] if template.system else []
            served = templates.render_jinja(
                template.tokenizer.chat_template,
                [*system, *messages],
                bos=template.tokenizer.bos_token,
                eos=template.tokenizer.eos_token,
                think=False,
                add_bos=False,
            )
            assert served == template.prompt(messages), json.dumps([name, messages])


#: A template that names its parts in capitals, as Cohere's does.
CAPITALS = (
    "<|SYSTEM|>{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}Be brief."
    "{% endif %}\n{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: One whose system prompt says whether the model thinks, as SmolLM3's does.
MODES = CAPITALS.replace(
    "Be brief.", "Be brief. {{ '/no_think' if enable_thinking is false else '/think' }}"
)


@pytest.mark.parametrize(
    ("text", "system"), [(CAPITALS, "Be brief."), (MODES, "Be brief. /no_think")]
)
def test_the_system_prompt_is_found_as_it_is_served(family: Family, text: str, system: str) -> None:
    tokenizer = family("smollm2")
    tokenizer.chat_template = text
    template = Template.of(tokenizer, None)
    assert template.system == system
    by_itself = tokenizer.apply_chat_template(
        [QUESTION], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert template.prompt([QUESTION]) == by_itself


def test_a_template_that_wants_a_system_prompt_says_so(family: Family) -> None:
    tokenizer = family("smollm2")
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    with pytest.raises(DataError, match="without a system prompt: no system") as caught:
        Template.of(tokenizer, None)
    assert caught.value.hint is not None
    assert "`system`" in caught.value.hint
    assert Template.of(tokenizer, "Be brief.").prompt([QUESTION]).startswith("Be brief.")


def test_a_conversation_without_turns_is_refused(family: Family) -> None:
    with pytest.raises(DataError, match="refuses the conversation"):
        Template.of(family("qwen3"), None).prompt([])
