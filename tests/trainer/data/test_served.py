"""The template in the GGUF renders what the training's does, whatever a server passes."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from chat_families import template_text
from jinja2 import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from transformers.utils.chat_template_utils import render_jinja_template

from loco.contracts.errors import ExportFailed
from loco_modelhost.prompts import templates as host
from loco_trainer.data import served
from loco_trainer.data.template import Template, settled

Family = Callable[[str], Any]
[TRL] = find_spec("trl").submodule_search_locations  # type: ignore[union-attr,misc]
SHIPPED = sorted(
    path.stem
    for path in Path(TRL, "chat_templates").glob("*.jinja")
    if not path.stem.endswith("_training")
)
TITLE = "locollm-math, job 01K, 2026-11-27"
CONVERSATIONS = (
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": " a  b\n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "ü “x”\u3000日本 👩‍👩‍👧 e\u0301"},
    ],
)
PASSED: tuple[dict[str, Any], ...] = (
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"enable_thinking": True, "reasoning_effort": "low", "preserve_thinking": True},
    {"thinking": True, "keep_thinking": True, "reasoning_strength": "low"},
)


def rendered(text: str, messages: list[dict[str, str]], **passed: Any) -> str | None:
    """By transformers; None: refused."""
    try:
        [found], _ = render_jinja_template(
            conversations=[messages],
            chat_template=text,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
            **passed,
        )
    except (TemplateError, TypeError):
        return None
    return str(found)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_template_of_trl_is_embedded_as_it_was_trained(name: str) -> None:
    text = settled(template_text(name))
    seen = 0
    for think in (False, True):
        embedded = served.embedded(text, think=think, title=TITLE)
        for messages in CONVERSATIONS:
            trained = rendered(text, messages, enable_thinking=think)
            assert all(rendered(embedded, messages, **passed) == trained for passed in PASSED)
            seen += trained is not None
    assert seen


@pytest.mark.parametrize("name", ["qwen3", "qwen3_8", "glm4moe", "llama3_1", "gptoss"])
def test_servers_jinja_renders_it_too(name: str) -> None:
    text = settled(template_text(name))
    both = {think: served.embedded(text, think=think, title=TITLE) for think in (False, True)}
    formatters = {
        think: Jinja2ChatFormatter(template=embedded, bos_token="<s>", eos_token="</s>")
        for think, embedded in both.items()
    }
    for think, messages, passed in product((False, True), CONVERSATIONS, PASSED):
        embedded, formatter = both[think], formatters[think]
        trained = rendered(text, messages, enable_thinking=think)
        assert formatter(messages=messages, **passed).prompt == trained
        of_host = host.render_jinja(
            embedded,
            messages,
            bos="<s>",
            eos="</s>",
            think=passed.get("enable_thinking", True),
            add_bos=False,
        )
        assert of_host == trained


def test_without_it_a_server_that_thinks_prompts_otherwise() -> None:
    """What a client that says nothing gets of Qwen3: the branch no row was trained in."""
    text = template_text("qwen3")
    asked = CONVERSATIONS[0]
    trained = rendered(text, asked, enable_thinking=False)
    assert rendered(text, asked, enable_thinking=True) != trained
    default = "{%- set enable_thinking = enable_thinking | default(false) -%}" + text
    assert rendered(default, asked, enable_thinking=True) != trained
    embedded = served.embedded(text, think=False, title=TITLE)
    assert rendered(embedded, asked, enable_thinking=True) == trained


@pytest.mark.parametrize("space", ["\n", "\n  ", " ", "\t", "\n\n "])
@pytest.mark.parametrize(
    "body",
    [
        "{% if true %}x{% endif %}y",
        "{%- if true %}x{% endif %}",
        "{{ 1 }}z",
        "{{- 1 }}z",
        "{# c #}q",
        "{#- c #}q",
        "text {{ 1 }}",
    ],
)
def test_white_space_it_begins_with_stays(space: str, body: str) -> None:
    text = space + body
    embedded = served.embedded(text, think=False, title=TITLE)
    assert rendered(embedded, CONVERSATIONS[0]) == rendered(text, CONVERSATIONS[0])


def test_the_comment_keeps_known_templates_away_and_nothing_closes_it() -> None:
    embedded = served.embedded(
        "{{ 1 }}", think=False, title="a #} {{ raise_exception('x') }} -#} b"
    )
    comment, _, rest = embedded.partition("-#}\n")
    assert rest == "{{ 1 }}"
    assert comment.startswith("{#- a")
    assert len(comment) > 250
    assert rendered(embedded, CONVERSATIONS[0]) == "1"
    assert not host.has_tools(comment)
    assert not host.has_thinking(comment)


def test_what_is_no_template_is_refused() -> None:
    with pytest.raises(ExportFailed, match="not a Jinja template"):
        served.embedded("{% if %}", think=False, title=TITLE)


def test_a_choice_that_cannot_be_settled_is_refused(family: Family) -> None:
    """A switch by another name: training does not pass it, a server may."""
    template = Template.of(family("qwen3"), None)
    text = template.tokenizer.chat_template
    asked = CONVERSATIONS[0]
    good = served.embedded(text, think=False, title=TITLE)
    assert served.require_same(template, good, asked, think=False) == template.prompt(asked)
    with pytest.raises(ExportFailed, match="it differs if a server passes nothing"):
        served.require_same(template, text, asked, think=False)
    thinking = served.embedded(text, think=True, title=TITLE)
    prompt = template.prompt(asked, think=True)
    assert served.require_same(template, thinking, asked, think=True) == prompt
    assert prompt != template.prompt(asked)


def test_the_branch_is_that_of_all_rows() -> None:
    thought = {"role": "assistant", "content": "<think>\nI add.\n</think>\n\n4"}
    plain = {"role": "assistant", "content": "4"}
    empty = {"role": "assistant", "content": "<think>\n\n</think>\n\n4"}
    assert served.thinking_branch([[thought], [thought]])
    for rows in ([], [[plain]], [[thought], [plain]], [[thought], [empty]]):
        assert not served.thinking_branch(rows)


@pytest.mark.parametrize(
    ("text", "thinks"),
    [
        ("<think></think>", True),
        ("<think>", False),
        ("{{ content.split('</think>') }}", True),
        ("{{ content.split('</think>') }}{{ reasoning_content }}", False),
        ("", False),
    ],
)
def test_thinking_is_what_ollama_takes_for_it(text: str, thinks: bool) -> None:
    assert served.can_think(text) == thinks
    assert host.has_thinking(text) == thinks
