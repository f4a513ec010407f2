"""Prompts by a GGUF's own chat template, and what such a template can do by Ollama's rule."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loco_modelhost.requests.refusals import Refusal

Message = Mapping[str, Any]


def has_tools(template: str) -> bool:
    """Whether a Jinja template renders tools."""
    return "tools" in template or "tool_call" in template


def has_thinking(template: str) -> bool:
    """Whether a Jinja template lets the model think before it answers."""
    if "<think>" in template and "</think>" in template:
        return True
    # those that cut earlier answers behind their thoughts: llama.cpp finds thoughts in new ones
    cuts = "content.split('</think>')" in template or 'content.split("</think>")' in template
    return cuts and "reasoning_content" not in template and "<SPECIAL_12>" not in template


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
    today = datetime.now().astimezone()  # llama.cpp hands it to every template
    try:
        prompt = _compiled(template).render(
            messages=[dict(m) for m in messages],
            add_generation_prompt=True,
            bos_token=bos,
            eos_token=eos,
            enable_thinking=think,
            date_string=f"{today:%d %b %Y}",
            datetime=f"{today:%b %d %Y}",
        )
    except TemplateError as error:
        raise Refusal(500, f"chat template error: {error}") from error
    return prompt.removeprefix(bos) if add_bos and bos else prompt


@lru_cache(16)
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
