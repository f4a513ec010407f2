"""The chat template of a training: the text its rows have is the text its model is asked with later.

What a template writes by itself is settled here, once, for training, export, register and eval: the
date (today's in Llama 3.2 and GPT-OSS, and llama.cpp hands today's to Llama 3.1) and the default
system prompt (Qwen2.5, SmolLM2), which a server may leave out. The settled template is saved with the
adapter and embedded in the GGUF.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from loco.contracts.errors import DataError

Message = dict[str, str]

#: The day every training has: the one Llama 3's own template names where it is given no clock. A
#: fixed one, so that the same recipe trains on the same tokens tomorrow.
DATE = date(2024, 7, 26)
_SETTLED_DATE = f'{{%- set date_string = "{DATE:%d %b %Y}" %}}\n'
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.{0,200}?)\1\s*\)""")
#: Of templates, and of transformers for a conversation without turns.
_REFUSALS = (TemplateError, ValueError)
#: Stands for a system prompt; no template has it in its own text.
_SYSTEM = "loco-5d1f7a02-system"
_MARK = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with its date and system prompt settled."""

    tokenizer: Any
    #: System prompt of conversations without one: the recipe's, else the template's own; None: none.
    system: str | None
    #: The same template with `{% generation %}` around what the model writes, where there is one.
    marked: str | None

    @classmethod
    def of(cls, tokenizer: Any, system: str | None) -> "Template":
        """Settles the template of a tokenizer, and puts the settled one into the tokenizer.

        Args:
            tokenizer: a Hugging Face tokenizer.
            system: the recipe's system prompt; None leaves it to the template.

        Raises:
            DataError: it has no chat template, or one that asks the clock in an unknown way.
        """
        try:
            text = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                "The base model's tokenizer has no chat template.",
                param="base_model",
                hint="Choose the instruct (chat) version of the model.",
            ) from error
        marked = text if _MARK.search(text) else _marked_by_trl(text)
        tokenizer.chat_template = settled(text)
        if system is None:
            system = _default_system(tokenizer)
        return cls(tokenizer, system, _dated(marked) if marked else None)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text, those that end a turn among them."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(self.tokenizer.all_special_ids) | {
            n for n, token in added if token.special
        }

    @property
    def thinks(self) -> bool:
        """Whether the template has a place for thoughts before an answer."""
        return "</think>" in self.tokenizer.chat_template

    def text(self, messages: Sequence[Message], *, think: bool = False) -> str:
        """A whole conversation, with the system prompt.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._rendered(messages, think, add_generation_prompt=False)

    def prompt(self, messages: Sequence[Message], *, think: bool = False) -> str:
        """The text a served model continues.

        Args:
            messages: up to the turn that is asked for.
            think: whether thoughts are asked for; register and eval ask without.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._rendered(messages, think, add_generation_prompt=True)

    def prompt_by(self, text: str, messages: Sequence[Message], **passed: Any) -> str:
        """The prompt another template renders of the same conversation.

        Args:
            text: the template.
            messages: up to the turn that is asked for.
            passed: variables of a server's own.
        """
        prompt: str = self.tokenizer.apply_chat_template(
            self._with_system(messages),
            chat_template=text,
            tokenize=False,
            add_generation_prompt=True,
            **passed,
        )
        return prompt

    def marks(self, messages: Sequence[Message], ids: list[int]) -> list[int]:
        """1 for each token that the template marks as the model's, 0 for the others.

        Args:
            messages: the conversation.
            ids: the tokens it is rendered to.

        Returns:
            Nothing where the template has no marks, or its marked version renders another text (TRL's
            of Qwen3 writes an empty thought before earlier answers too).
        """
        if self.marked is None or not self.tokenizer.is_fast:
            return []
        found = self.tokenizer.apply_chat_template(
            self._with_system(messages),
            chat_template=self.marked,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return list(found["assistant_masks"]) if found["input_ids"] == ids else []

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text, none added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system is None or (messages and messages[0]["role"] == "system"):
            return list(messages)
        return [{"role": "system", "content": self.system}, *messages]

    def _rendered(self, messages: Sequence[Message], think: bool, **options: bool) -> str:
        try:
            return _render(
                self.tokenizer, self._with_system(messages), enable_thinking=think, **options
            )
        except _REFUSALS as error:
            raise DataError(
                f"the base model's chat template refuses the conversation: {error}",
                hint="Change the row's roles, or choose a base model whose template has them. A "
                "system prompt comes from the row or from the base model's `system`.",
            ) from error


def settled(text: str) -> str:
    """A chat template as it is saved and served: with its date, and without marks.

    Raises:
        DataError: it asks the clock in an unknown way.
    """
    return _MARK.sub(_unmarked, _dated(text))


def _render(tokenizer: Any, messages: Sequence[Message], **options: bool) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    return text


def _dated(text: str) -> str:
    """The template with DATE wherever it asks for today's."""
    text = _CLOCK.sub(lambda call: json.dumps(DATE.strftime(call[2])), text)
    if "strftime_now(" in text:
        raise DataError(
            "The base model's chat template uses the current date in a way that locollm cannot "
            "fix, so the model would be served with another date than in training.",
            param="base_model",
            hint="Write a fixed date instead of strftime_now(…) in its chat template.",
        )
    if "date_string" in text and not text.startswith(_SETTLED_DATE):
        text = _SETTLED_DATE + text  # also where the server passes one: llama.cpp does, for Llama 3
    return text


def _unmarked(mark: re.Match[str]) -> str:
    """In place of a mark, which not every server knows, a block that does nothing."""
    return f"{mark[1]}{'endif' if mark[2] else 'if true'}{mark[3]}"


def _marked_by_trl(text: str) -> str | None:
    """TRL's training version of a template it knows, read without importing TRL (seconds)."""
    trl = find_spec("trl")
    for folder in (trl.submodule_search_locations or []) if trl else []:
        for marked in sorted(Path(folder, "chat_templates").glob("*_training.jinja")):
            own = marked.with_name(marked.name.replace("_training", ""))
            if own.read_text(encoding="utf-8") == text:
                return marked.read_text(encoding="utf-8")
    return None


def _default_system(tokenizer: Any) -> str | None:
    """The system prompt a template writes where a conversation has none."""
    asked = [{"role": "user", "content": "?"}]

    def rendered(*system: str) -> str:
        said = [{"role": "system", "content": content} for content in system]
        return _render(
            tokenizer, [*said, *asked], enable_thinking=False
        )  # as rows are without thoughts

    try:
        bare = rendered()
    except _REFUSALS as error:
        raise DataError(
            f"The base model's chat template refuses a chat without a system prompt: {error}",
            param="base_model",
            hint="Set the base model's `system` in adapters/base_models.yaml.",
        ) from error
    try:
        around = rendered(_SYSTEM).split(_SYSTEM)
    except _REFUSALS:
        return None  # it knows no system prompt
    if len(around) != 2:
        return None  # it leaves it out, or says it more than once
    head, tail = around
    default = bare[len(head) : len(bare) - len(tail)]
    return default if default and rendered(default) == bare else None
