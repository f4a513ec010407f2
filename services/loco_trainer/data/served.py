"""The chat template as it is embedded in a GGUF: whoever asks, the model sees the prompt of its training.

A server would render the training's template otherwise in two ways (measured on Ollama, docs/adr/0014).
It takes a template that resembles one it knows for that one, and renders its own version, which loses a
BOS, a default system prompt or adds a newline. And it passes a choice of its own where a template asks
whether to think: on, unless the client says otherwise. So the embedded template begins with a comment
that makes it unlike any known one, and settles what steers thoughts as the training had it.
"""

import re
from collections.abc import Iterable

from jinja2 import Environment, TemplateError, meta
from jinja2.ext import loopcontrols

from loco.contracts.errors import ExportFailed
from loco_trainer.data import thoughts
from loco_trainer.data.template import Message, Template

#: The variable that transformers and every server pass, and training too.
_SWITCH = "enable_thinking"
#: Others that steer thoughts (`thinking`, `reasoning_effort`, `preserve_thinking`, …) are what a server
#: may pass and training does not.
_STEERS = re.compile(r"think|reason")
#: No server passes a variable of this name, so what is set to it is undefined, as in training.
_UNSET = "locollm_unset"
#: Ollama looks for its own templates within an edit distance of 100. The comment says nothing that
#: a server takes for an ability (`tools`, `<think>`).
_COMMENT = (
    "{{#- {title}. The chat template this model was trained with, written by locollm: its date and "
    "whether it reasons are settled as in the training, for every client. This comment is part of "
    "that: a server that looks up which known template resembles this one finds none and renders it "
    "as it stands -#}}\n"
)
_PLAIN = re.compile(r"[^A-Za-z0-9 .,:_/-]")


def thinking_branch(conversations: Iterable[list[Message]]) -> bool:
    """Whether the training's prompts ask for thoughts: all its last answers have them.

    A mixed set trains both ways of asking; without thoughts is then the one that register and eval use.
    """
    found = [thoughts.thinks(messages[-1]) for messages in conversations]
    return bool(found) and all(found)


def embedded(text: str, *, think: bool, title: str) -> str:
    """A settled chat template as a GGUF gets it.

    Args:
        text: the template of the training (`template.settled`).
        think: the branch of the training.
        title: model, job and date, for the comment; what could end it is left out.

    Returns:
        A template that renders what `text` renders with `enable_thinking` as `think` says, to the byte,
        whatever of that kind a server passes.

    Raises:
        ExportFailed: it is no Jinja template.
    """
    value = "true" if think else "false"
    settings = [
        f"{{%- set {name} = {value if name == _SWITCH else _UNSET} -%}}\n"
        for name in _steering(text)
    ]
    head = _COMMENT.format(title=_PLAIN.sub("", title)) + "".join(settings)
    # the head's last dash takes the newline behind it, and would take the template's own too
    return head + _untouched(text)


def can_think(text: str) -> bool:
    """Whether Ollama lists the capability `thinking` (`chatTemplateHasThinkingSupport`)."""
    if "<think>" in text and "</think>" in text:
        return True
    splits = any(f"content.split({quote}</think>{quote})" in text for quote in "'\"")
    return splits and "reasoning_content" not in text and "<SPECIAL_12>" not in text


def require_same(template: Template, text: str, messages: list[Message], *, think: bool) -> str:
    """The prompt of a conversation, which the embedded template renders as the training's does.

    Args:
        template: of the training.
        text: what is embedded.
        messages: up to the turn that is asked for.
        think: the branch of the training.

    Raises:
        ExportFailed: they differ, for some choice that a server may pass.
        DataError: the template refuses the conversation.
    """
    prompt = template.prompt(messages, think=think)
    for passed in ({}, {_SWITCH: True}, {_SWITCH: False, "reasoning_effort": "low"}):
        if template.prompt_by(text, messages, **passed) != prompt:
            raise ExportFailed(
                "The chat template cannot be embedded so that every client gets the prompt of "
                f"training (it differs if a server passes {passed or 'nothing'}).",
                hint="Choose a base model whose template controls thoughts only with "
                "`enable_thinking`.",
            )
    return prompt


def _steering(text: str) -> list[str]:
    """Variables of the caller's that steer thoughts, in the order of their names."""
    try:
        parsed = Environment(extensions=[loopcontrols]).parse(text)  # noqa: S701 (it makes no HTML)
    except TemplateError as error:
        raise ExportFailed(
            f"The chat template is not a Jinja template: {error}",
            hint="Fix tokenizer.chat_template of the base model.",
        ) from error
    return sorted(name for name in meta.find_undeclared_variables(parsed) if _STEERS.search(name))


def _untouched(text: str) -> str:
    """The template behind an empty expression, which unlike a tag's end leaves its first line alone."""
    body = text.lstrip(" \t\r\n")
    space = text[: len(text) - len(body)]
    if "\n" not in space and body.startswith(("{%", "{#")):
        space = ""  # lstrip_blocks takes it where the template begins with it
    return f"{{{{- '' }}}}{space}{body}" if space else body
