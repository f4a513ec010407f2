"""Thoughts of an answer: where a row has them, and whether a template writes them as they are.

Some templates read them from the content (Qwen3), some from a field of their own (Qwen3.8).
"""

import re
from collections.abc import Sequence

from loco.contracts.errors import DataError
from loco_trainer.data.template import Message, Template

_END = "</think>"
#: Thoughts open the content; a text that only speaks of `</think>` has none.
_BLOCK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def thinks(message: Message) -> bool:
    """Whether an answer has thoughts; an empty block, the usual form without any, is none."""
    return bool(_parts(message)[0])


def as_read(messages: Sequence[Message], asked: list[int], template: Template) -> list[Message]:
    """The conversation in the form whose thoughts the template reads; empty ones are left out.

    Args:
        messages: the conversation.
        asked: the places of the answers that are trained on.
        template: the chat template of the training.

    Raises:
        DataError: it reads them in neither form, or an answer has them in both.
    """
    if any(map(_twice, messages)):
        raise DataError(
            "an answer has thoughts both in `content` and in `reasoning_content`.",
            hint="Keep only one of them.",
        )
    as_given = [_without_empty(message) for message in messages]
    thinking = [place for place in asked if thinks(as_given[place])]
    if not thinking:
        return as_given
    if not template.thinks:
        raise _refused("has no place for.")
    last = thinking[-1]
    for form in (as_given, list(map(_joined, as_given)), list(map(_split, as_given))):
        prompt = template.prompt(form[:last], think=True)
        text = template.text(form[: last + 1], think=True)
        if text.startswith(prompt) and are_kept(form[last], text[len(prompt) :]):
            return form
    raise _refused("leaves out of training, or changes.")


def are_kept(message: Message, written: str) -> bool:
    """Whether what a template writes after the prompt begins with the thoughts, and only with them."""
    thought, rest = _parts(message)
    if not thought:  # templates cut at the mark, also where a text only speaks of it
        return _END not in rest or rest in written
    before, end, after = written.partition(_END)
    return bool(end) and _inside(before) == thought and rest in after


def _refused(what: str) -> DataError:
    return DataError(
        f"the answer has thoughts (<think>…</think>), which the base model's chat template {what}",
        hint="Leave the thoughts out of the row, or choose a base model whose template has them "
        "(Qwen3).",
    )


def _parts(message: Message) -> tuple[str, str]:
    """Thoughts and the answer behind them, without the space around them."""
    content = message["content"]
    if message["role"] != "assistant":
        return "", content
    if field := message.get("reasoning_content", "").strip():
        return field, content.strip()
    block = _BLOCK.match(content)
    if block is None:
        return "", content.strip()
    return block[1].strip(), content[block.end() :].strip()


def _inside(opened: str) -> str:
    return opened.strip().removeprefix("<think>").strip()


def _twice(message: Message) -> bool:
    return "reasoning_content" in message and thinks(_without_field(message))


def _without_field(message: Message) -> Message:
    return {"role": message["role"], "content": message["content"]}


def _without_empty(message: Message) -> Message:
    if thinks(message):
        return message
    content = message["content"]
    if message["role"] == "assistant" and (block := _BLOCK.match(content)):
        content = content[block.end() :]
    return {"role": message["role"], "content": content}


def _joined(message: Message) -> Message:
    if not thinks(message):
        return message
    thought, rest = _parts(message)
    return {"role": message["role"], "content": f"<think>\n{thought}\n{_END}\n\n{rest}"}


def _split(message: Message) -> Message:
    if not thinks(message):
        return message
    thought, rest = _parts(message)
    return {"role": message["role"], "content": rest, "reasoning_content": thought}
