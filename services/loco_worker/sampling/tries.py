"""A question and the answers it got so far."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from loco.grading.eval_items import EvalItem
from loco_worker.sources.rows import Row


class Try(NamedTuple):
    """One answer to a question."""

    #: From 1, in the order of the sampling seeds; those with a hint are counted apart.
    number: int
    #: Without outer spaces.
    text: str
    #: Whether it ended by itself and the grader accepts it.
    right: bool
    #: Why not, in a line; None of a right one.
    why: str | None
    tokens: int
    #: Whether it ended by itself.
    ended: bool


@dataclass
class Asked:
    """A question and what came of it."""

    row: Row
    #: In order of their numbers, once a pass over the question is done.
    tries: list[Try] = field(default_factory=list)
    #: Answers that were given the right answer as a hint.
    hinted: list[Try] = field(default_factory=list)
    #: Whether it is longer than the context, so that nobody can answer it.
    too_long: bool = False

    @property
    def item(self) -> EvalItem:
        """The question with its right answer and grader."""
        assert self.row.item is not None, "only the questions of a source are read here"
        return self.row.item

    @property
    def solved(self) -> bool:
        """Whether an answer without a hint is right."""
        return any(t.right for t in self.tries)

    @property
    def mixed(self) -> bool:
        """Whether some answers are right and some wrong."""
        return self.solved and not all(t.right for t in self.tries)

    def of(self, *, hint: bool) -> list[Try]:
        """The tries with or without a hint."""
        return self.hinted if hint else self.tries

    def rights(self) -> list[Try]:
        """The right answers that differ in more than spacing, by number."""
        return _different(t for t in self.tries if t.right)

    def wrongs(self) -> list[Try]:
        """The wrong answers that differ, say something and ended by themselves.

        A cut one would be trained on with an end that the model never wrote.
        """
        return _different(t for t in self.tries if not t.right and t.text and t.ended)


def _different(tries: Iterable[Try]) -> list[Try]:
    found: dict[str, Try] = {}
    for one in tries:
        found.setdefault(" ".join(one.text.split()), one)
    return list(found.values())
