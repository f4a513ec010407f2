"""Pairs of a right and a wrong answer to the same prompt, as tokenized rows.

Both rows have the prompt's tokens; only those of their last answer count, tokenized as in training
rows: earlier answers of the prompt are part of what is asked.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loco.contracts.errors import DataError
from loco_trainer.data import rows
from loco_trainer.data.rows import Row
from loco_trainer.data.template import Message, Template


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    chosen: Row
    rejected: Row

    @property
    def rows(self) -> tuple[Row, Row]:
        """Both, the right one first."""
        return self.chosen, self.rejected

    @property
    def longest(self) -> int:
        """Tokens of the longer one."""
        return max(len(row.input_ids) for row in self.rows)


@dataclass(frozen=True)
class Pairs:
    """Tokenized pairs."""

    pairs: list[Pair]
    #: Pairs with a row longer than the longest length: an answer without its end is another answer.
    left_out: int


def read(path: Path, template: Template, *, max_length: int) -> Pairs:
    """Reads and tokenizes `preference_data.jsonl`.

    Args:
        path: JSONL of `{"prompt": [{"role", "content"}, …], "chosen": [{"role": "assistant",
            "content"}], "rejected": [as chosen]}`, TRL's conversational preference format.
        template: the chat template of the training.
        max_length: longest row in tokens.

    Raises:
        DataError: a line is malformed or beyond the template (named), or no pair is left.
    """
    pairs: list[Pair] = []
    left_out = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                pair = _encoded(line, template)
            except DataError as error:
                raise DataError(
                    f"{path.name}, line {number}: {error.message}",
                    param=error.param,
                    hint=error.hint,
                ) from error
            if pair.longest > max_length:
                left_out += 1
            else:
                pairs.append(pair)
    if not pairs:
        raise DataError(
            f"{path.name} has no pair to train on ({left_out} have an answer that ends after "
            f"{max_length} tokens).",
            param="train.max_length" if left_out else "train.preference",
            hint="Raise train.max_length, or lower prepare.source.num_predict."
            if left_out
            else "Set prepare.source.pairs, or leave train.preference out.",
        )
    return Pairs(pairs, left_out)


def _encoded(line: str, template: Template) -> Pair:
    pair = Pair(*(rows.encode_last(turns, template) for turns in _conversations(line)))
    if pair.chosen.input_ids == pair.rejected.input_ids:
        # also where the texts differ: templates strip the space around an answer
        raise DataError("chosen and rejected are the same.", hint="Leave the pair out.")
    return pair


def _conversations(line: str) -> tuple[list[Message], list[Message]]:
    """The prompt with each of the two answers."""
    try:
        document = json.loads(line)
        prompt = [rows.message_of(turn) for turn in document["prompt"]]
        chosen, rejected = (_answer(document[name]) for name in ("chosen", "rejected"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            'not a pair {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], '
            '"rejected": [{"role": "assistant", …}]}.'
        ) from error
    return [*prompt, chosen], [*prompt, rejected]


def _answer(turns: Any) -> Message:
    (turn,) = turns
    if turn["role"] != "assistant":
        raise ValueError(turn["role"])
    return rows.message_of(turn)
