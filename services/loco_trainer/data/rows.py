"""Training rows: from chat lines to token ids whose loss counts on the answer only.

Prompt and answer are tokenized apart, because at serving time the model sees the prompt's tokens
and continues them: a merge over the border would be trained and never met.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loco.contracts.errors import DataError

#: Label of tokens that carry no loss (torch's cross-entropy ignores it).
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One tokenized conversation."""

    input_ids: list[int]
    #: As long as `input_ids`: IGNORED on the prompt, the token itself on the answer.
    labels: list[int]


@dataclass(frozen=True)
class Rows:
    """Tokenized training data."""

    rows: list[Row]
    #: Rows whose end was cut off at the longest length.
    cut: int
    #: Rows left out because the prompt alone fills the longest length.
    dropped: int

    @property
    def tokens(self) -> int:
        """Tokens of one epoch, padding excluded."""
        return sum(len(row.input_ids) for row in self.rows)


def read(path: Path, tokenizer: Any, *, system: str | None, max_length: int) -> Rows:
    """Reads and tokenizes `training_data.jsonl`.

    Args:
        path: JSONL of `{"conversations": [{"role", "content"}, …]}`, the last turn the assistant's.
        tokenizer: a Hugging Face tokenizer with a chat template.
        system: system prompt put before rows that have none; None leaves it to the template.
        max_length: longest row in tokens.

    Raises:
        DataError: a line is malformed (named), or no row is left.
    """
    rows: list[Row] = []
    cut = dropped = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = encode(_messages(path, number, line), tokenizer, system=system)
            if len(row.input_ids) > max_length:
                row = Row(row.input_ids[:max_length], row.labels[:max_length])
                if row.labels[-1] == IGNORED:
                    dropped += 1
                    continue
                cut += 1
            rows.append(row)
    if not rows:
        raise DataError(
            f"{path.name} has no row to train on ({dropped} are longer than {max_length} tokens "
            "before their answer begins).",
            param="train.max_length" if dropped else None,
            hint="Raise train.max_length, or look at what prepare dropped and why.",
        )
    return Rows(rows, cut, dropped)


def encode(messages: list[dict[str, str]], tokenizer: Any, *, system: str | None) -> Row:
    """Tokenizes one conversation; the loss counts on the last answer and its end token.

    Raises:
        DataError: the chat template does not continue the prompt with the answer.
    """
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    prompt = prompt_text(messages[:-1], tokenizer)
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    if not whole.startswith(prompt):
        raise DataError(
            "The base model's chat template renders an answer differently from a prompt's "
            "continuation, so the answer's tokens cannot be told from the prompt's.",
            hint="Use a base model whose template has a generation prompt.",
        )
    answer = whole[len(prompt) :]
    end: str = tokenizer.eos_token
    # templates put a newline after the end token; nothing past it is ever generated
    answer = answer[: answer.rindex(end)] + end if end in answer else answer + end
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(answer, add_special_tokens=False)
    return Row(before + after, [IGNORED] * len(before) + after)


def prompt_text(messages: list[dict[str, str]], tokenizer: Any) -> str:
    """The text a served model continues, with thinking switched off where a template has it."""
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text


def _messages(path: Path, number: int, line: str) -> list[dict[str, str]]:
    try:
        messages = json.loads(line)["conversations"]
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
        well_formed = len(messages) > 1 and messages[-1]["role"] == "assistant"
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_malformed(path, number)) from error
    if not well_formed:
        raise DataError(_malformed(path, number))
    return messages


def _malformed(path: Path, number: int) -> str:
    return (
        f"{path.name}, line {number}: not a chat row "
        '{"conversations": [{"role": "user", …}, {"role": "assistant", …}]}.'
    )
