"""Training rows: from chat lines to token ids whose loss counts on what the assistant says.

A conversation is tokenized as one text; each of its answers is trained on after exactly the tokens a
server has when that answer is asked for, and up to the token that ends its turn. Where the template
writes earlier answers otherwise than it asked for them (Qwen3 leaves out their thoughts), each answer
becomes a row of its own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loco.contracts.errors import DataError
from loco_trainer.data import thoughts
from loco_trainer.data.template import Message, Template

#: Label of tokens that carry no loss (torch's cross-entropy ignores it).
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One tokenized conversation."""

    input_ids: list[int]
    #: As long as `input_ids`: the token itself where the loss counts on it, IGNORED elsewhere.
    labels: list[int]


@dataclass(frozen=True)
class Rows:
    """Tokenized training data."""

    rows: list[Row]
    #: Rows cut off at the longest length within an answer, which has no end.
    cut: int
    #: Rows left out because what comes before the first answer alone fills the longest length.
    dropped: int
    #: Conversations with thoughts in them.
    thinking: int = 0
    #: Answers left out because they begin beyond the longest length, those of `dropped` rows too.
    lost: int = 0
    #: Conversations read; more rows than these where a template asks for a row an answer.
    conversations: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one epoch, padding excluded."""
        return sum(len(row.input_ids) for row in self.rows)


def read(path: Path, template: Template, *, max_length: int) -> Rows:
    """Reads and tokenizes `training_data.jsonl`.

    Args:
        path: JSONL of `{"conversations": [{"role", "content"}, …]}`, the last turn the assistant's.
        template: the chat template of the training.
        max_length: longest row in tokens.

    Raises:
        DataError: a line is malformed or beyond the template (named), or no row is left.
    """
    rows: list[Row] = []
    cut = dropped = thinking = lost = conversations = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            messages = _messages(path, number, line)
            conversations += 1
            thinking += any(map(thoughts.thinks, messages))
            for row in _encoded(path, number, messages, template):
                kept, inside, beyond = within(row, max_length)
                lost += beyond
                cut += inside
                if kept is None:
                    dropped += 1
                else:
                    rows.append(kept)
    if not rows:
        raise DataError(
            f"{path.name} has no row to train on (in {dropped} rows the answer begins after "
            f"{max_length} tokens).",
            param="train.max_length" if dropped else None,
            hint="Raise train.max_length, or check which rows prepare left out and why.",
        )
    return Rows(rows, cut, dropped, thinking, lost, conversations)


def within(row: Row, longest: int) -> tuple[Row | None, bool, int]:
    """A row up to its last answer within a length, whether that answer was cut, and answers beyond.

    None for a row whose first answer begins beyond it.
    """
    labels = row.labels
    if len(labels) <= longest:
        return row, False, 0
    inside = IGNORED not in labels[longest - 1 : longest + 1]
    places = range(longest, len(labels))
    begun = [n for n in places if labels[n] != IGNORED and labels[n - 1] == IGNORED]
    end = longest
    while end and labels[end - 1] == IGNORED:  # a question whose answer is lost
        end -= 1
    kept = Row(row.input_ids[:end], labels[:end]) if end else None
    return kept, inside, len(begun)


def encode(messages: list[Message], template: Template) -> list[Row]:
    """Tokenizes one conversation; the loss counts on every answer and the token that ends it.

    Args:
        messages: the last one is the assistant's.
        template: the chat template of the training.

    Returns:
        One row, or one for each answer where the template does not write an earlier answer as it was
        asked for.

    Raises:
        DataError: the template does not continue the prompt with the answer, or knows no thoughts.
    """
    asked = _asked(messages)
    messages = thoughts.as_read(messages, asked, template)
    if len(asked) > 1:
        row = _row_of_all(messages, asked, template)
        return [row] if row else [_row_of_last(messages[: n + 1], template) for n in asked]
    return [_row_of_last(messages, template)]


def encode_last(messages: list[Message], template: Template) -> Row:
    """Tokenizes one conversation; the loss counts on the last turn alone.

    Args:
        messages: the last one is the assistant's.
        template: the chat template of the training.

    Raises:
        DataError: as of `encode`.
    """
    last = _asked(messages)[-1:]
    return _row_of_last(thoughts.as_read(messages, last, template), template)


def _asked(messages: list[Message]) -> list[int]:
    """The places of the answers to a user's turn.

    Raises:
        DataError: there is none.
    """
    first = next((n for n, message in enumerate(messages) if message["role"] == "user"), None)
    asked = [
        place
        for place, message in enumerate(messages)
        if message["role"] == "assistant" and first is not None and place > first
    ]
    if not asked:
        raise DataError(
            "an answer has no user turn before it, so the model would learn something it is "
            "never asked.",
            hint="Put a turn of role user before the answer, or leave the row out.",
        )
    return asked


def _row_of_all(messages: list[Message], asked: list[int], template: Template) -> Row | None:
    """All answers in one row; None where one of them would be trained on otherwise than asked for."""
    text = template.text(messages, think=thoughts.thinks(messages[-1]))
    ids = template.encode(text)
    marked = template.marks(messages, ids)
    labels = [IGNORED] * len(ids)
    end = 0
    for place in asked:
        think = thoughts.thinks(messages[place])
        prompt = template.prompt(messages[:place], think=think)
        before = template.encode(prompt)
        if not text.startswith(prompt) or ids[: len(before)] != before:
            return None
        if not thoughts.are_kept(messages[place], text[len(prompt) :]):
            return None
        # a later turn may change what an earlier one was, and marks may run into the next answer
        same = _same(template.encode(template.text(messages[: place + 1], think=think)), ids)
        stop = min(_end_of_marks(marked, len(before)) or same, same)
        end = _end_of_turn(ids, len(before), stop, template)
        if not end and stop < same and ids[stop] in template.special_ids:
            end = stop + 1  # the marks leave it out
        if not end:
            return None
        labels[len(before) : end] = ids[len(before) : end]
    return Row(ids[:end], labels[:end])


def _row_of_last(messages: list[Message], template: Template) -> Row:
    """The last answer after all that came before it."""
    think = thoughts.thinks(messages[-1])
    prompt = template.prompt(messages[:-1], think=think)
    text = template.text(messages, think=think)
    if not text.startswith(prompt):
        raise DataError(
            "the base model's chat template renders the answer differently in training and in "
            "use, so the model would learn something it is never asked.",
            hint="Choose a base model whose answers begin with the template's generation "
            "prompt. Some reasoning models cannot be trained on answers without thoughts.",
        )
    if not thoughts.are_kept(messages[-1], text[len(prompt) :]):
        raise DataError(
            "the base model's chat template changes the answer: it reads `</think>` as the end "
            "of thoughts.",
            hint="Start the content with <think> if it has thoughts, or write `</think>` "
            "differently.",
        )
    before, ids = template.encode(prompt), template.encode(text)
    start = len(before)
    if ids[:start] == before:
        stop = _end_of_marks(template.marks(messages, ids), start) or len(ids)
    else:  # a token lies across the border, which a server that has only the prompt never sees
        ids = before + _continued(text[len(prompt) :], template)
        stop = len(ids)
    if end := _end_of_turn(ids, start, stop, template):
        ids = ids[:end]
    else:  # the marks leave the end out, or the template ends no turn, but the model has to learn to
        behind = (token for token in ids[stop:] if token in template.special_ids)
        ids = [*ids[:stop], next(behind, template.tokenizer.eos_token_id)]
    return Row(ids, [IGNORED] * start + ids[start:])


def _same(some: list[int], others: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(some), len(others)))


def _end_of_marks(marks: list[int], start: int) -> int:
    """Where the marked tokens from `start` on end; 0 where none begin there."""
    if start >= len(marks) or not marks[start]:
        return 0
    return marks.index(0, start) if 0 in marks[start:] else len(marks)


def _end_of_turn(ids: list[int], start: int, stop: int, template: Template) -> int:
    """Behind the token that ends the turn written in `start` to `stop`; 0 where none does.

    Templates put more after it (a newline, Phi-3 an end of text), which a served model never writes.
    """
    end = 0
    for place in range(stop - 1, start - 1, -1):
        if ids[place] in template.special_ids:
            end = place + 1
        elif template.tokenizer.decode([ids[place]]).strip():
            break
    return end


def _continued(answer: str, template: Template) -> list[int]:
    """Token ids of a text that goes on from another.

    SentencePiece models put a space before a text of its own: after a newline there is none.
    """
    newline, both = template.encode("\n"), template.encode(f"\n{answer}")
    if both[: len(newline)] == newline:
        return both[len(newline) :]
    return template.encode(answer)


def _encoded(path: Path, number: int, messages: list[Message], template: Template) -> list[Row]:
    try:
        return encode(messages, template)
    except DataError as error:
        raise DataError(
            f"{path.name}, line {number}: {error.message}", param=error.param, hint=error.hint
        ) from error


def _messages(path: Path, number: int, line: str) -> list[Message]:
    try:
        messages = json.loads(line)["conversations"]
        messages = [message_of(turn) for turn in messages]
        well_formed = len(messages) > 1 and messages[-1]["role"] == "assistant"
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_malformed(path, number)) from error
    if not well_formed:
        raise DataError(_malformed(path, number))
    return messages


def message_of(turn: dict[str, Any]) -> Message:
    """A turn of a data file.

    Raises:
        KeyError, TypeError: it is none.
    """
    message = {"role": turn["role"], "content": turn["content"]}
    if turn["role"] == "assistant" and turn.get("reasoning_content") is not None:
        message["reasoning_content"] = turn["reasoning_content"]
    if not all(isinstance(value, str) for value in message.values()):
        raise TypeError  # null would be trained on as the word None
    return message


def _malformed(path: Path, number: int) -> str:
    return (
        f"{path.name}, line {number}: not a chat row "
        '{"conversations": [{"role": "user", …}, {"role": "assistant", …}]}.'
    )
