"""Answers and their score: one JSON line a problem, appended as they come, so a run can go on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loco.grading.answers import extract, is_correct
from loco_trainer.data.template import Template

#: Most tokens of an answer: 1,314 of the 1,319 worked answers of GSM8K's test set are no longer.
MAX_TOKENS = 256


class Say(Protocol):
    """Takes one finished answer: the problem, the text, its tokens, whether the model ended it."""

    def __call__(self, problem: dict[str, str], text: str, tokens: int, *, ended: bool) -> None:
        """Writes it down."""


class Answer(NamedTuple):
    """One scored answer as read back."""

    correct: bool
    ended: bool
    tokens: int
    text: str


def read(path: Path) -> dict[str, Answer]:
    """The answers of a file by problem id; a line cut short by a kill is left out."""
    found: dict[str, Answer] = {}
    if not path.is_file():
        return found
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["id"]] = Answer(
            entry["correct"], entry["ended"], entry["tokens"], entry["text"]
        )
    return found


@contextmanager
def written_to(path: Path) -> Iterator[Say]:
    """Appends scored answers to a file, each flushed at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")  # after a line cut short

        def say(problem: dict[str, str], text: str, tokens: int, *, ended: bool) -> None:
            number = extract(text)
            entry: dict[str, Any] = {
                "id": problem["id"],
                "correct": is_correct(problem["answer"], text),
                "expected": problem["answer"],
                "found": None if number is None else number.text,
                "ended": ended,
                "tokens": tokens,
                "text": text,
            }
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()

        yield say


def prompt(question: str, system: str | None, tokenizer: Any) -> str:
    """The text a served model continues, rendered as for training."""
    return Template.of(tokenizer, system).prompt([{"role": "user", "content": question}])
