r"""From messages to a prompt, by the rule Ollama follows.

At create, a GGUF's Jinja chat template that resembles a known one is replaced by Ollama's own version
of it. For the ChatML family this drops the default system prompt that such a template may add by
itself: send or store `system` to have one. Otherwise the GGUF's Jinja template is used, as it also is
when it can do more (tools, thinking) than the stored one.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loco_modelhost.requests.refusals import Refusal

Message = Mapping[str, Any]

#: Ollama's template of a model without any.
PROMPT_ONLY = "{{ .Prompt }}"

#: Ollama's version of ChatML, and the stop strings that come with it.
CHATML = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
CHATML_STOP = ("<|im_start|>", "<|im_end|>")

#: Two templates this many edits apart are not the same one any more (template.Named in Ollama).
MOST_EDITS = 100

_TURNS = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
)
_PREFIX = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_UNSET = "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
_DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
)
#: The ChatML templates Ollama knows.
_KNOWN_CHATML = (
    _TURNS + _PREFIX,
    "{{bos_token}}" + _TURNS + _PREFIX,
    _UNSET + _TURNS + _PREFIX,
    _UNSET + "{{ bos_token }}" + _TURNS + _PREFIX,
    _TURNS.replace("{% for message in messages %}", _DEFAULT_SYSTEM) + _PREFIX,
)


def is_chatml(template: str) -> bool:
    """Whether Ollama takes a GGUF's Jinja template for ChatML."""
    return "<|im_start|>" in template and any(
        edits(template, known, MOST_EDITS) < MOST_EDITS for known in _KNOWN_CHATML
    )


def edits(a: str, b: str, limit: int) -> int:
    """Levenshtein distance of two texts, or `limit` when it is not less."""
    if abs(len(a) - len(b)) >= limit:
        return limit
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            cost = before if left == right else 1 + min(before, row[j], row[j - 1])
            before, row[j] = row[j], cost
        if min(row) >= limit:
            return limit
    return min(row[-1], limit)


def has_tools(template: str) -> bool:
    """Whether a Jinja template renders tools."""
    return "tools" in template or "tool_call" in template


def has_thinking(template: str) -> bool:
    """Whether a Jinja template lets the model think before it answers."""
    return "<think>" in template and "</think>" in template


def check_stored(template: str) -> None:
    """Refuses a Go template this host can't render.

    Raises:
        Refusal: 400, with what to do instead.
    """
    if template.replace("\r\n", "\n") not in (CHATML, PROMPT_ONLY):
        raise Refusal(
            400,
            "template error: this model host renders a GGUF's own chat template, ChatML and "
            "`{{ .Prompt }}`, no other Go template; leave `template` out and embed the chat "
            "template in the GGUF (tokenizer.chat_template)",
        )


def render_stored(template: str, messages: Sequence[Message]) -> str:
    """The prompt of a Go template that `check_stored` lets pass."""
    merged: list[dict[str, str]] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] != "tool":
            merged[-1]["content"] += "\n\n" + message["content"]
        else:
            merged.append({"role": message["role"], "content": message["content"]})
    if template == CHATML:
        turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in merged)
        return "".join(turns) + "<|im_start|>assistant\n"
    # `{{ .Prompt }}` knows no roles: each user turn is its prompt, each answer follows it
    return "".join(m["content"] for m in merged if m["role"] != "system")


def render_jinja(
    template: str, messages: Sequence[Message], *, bos: str, eos: str, think: bool, add_bos: bool
) -> str:
    """The prompt of a GGUF's own chat template.

    Args:
        template: Jinja source.
        messages: the conversation, system prompt first.
        bos: text of the BOS token.
        eos: text of the EOS token.
        think: `enable_thinking` of the template.
        add_bos: whether the tokenizer adds BOS by itself: it is then not written twice.

    Raises:
        Refusal: the template can't render these messages (500, as from llama.cpp's server).
    """
    try:
        prompt = _compiled(template).render(
            messages=[dict(m) for m in messages],
            add_generation_prompt=True,
            bos_token=bos,
            eos_token=eos,
            enable_thinking=think,
        )
    except TemplateError as error:
        raise Refusal(500, f"chat template error: {error}") from error
    return prompt.removeprefix(bos) if add_bos and bos else prompt


@cache
def _compiled(template: str) -> Template:
    """The environment of transformers' `apply_chat_template`, so that both render the same."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(template)


def _raise(message: str) -> None:
    raise TemplateError(message)
