"""Asks every contestant its problems, model after model."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from loco.contracts.errors import OllamaRefused
from loco.grading.eval_items import EvalItem
from loco.serving.host import Answer, OllamaHost
from loco.stage.program import Emitter
from loco_worker.asking import pool
from loco_worker.asking.answers import AnswerStore
from loco_worker.measuring.models import Contestant

#: Questions at once where the recipe says `auto`: a server that answers fewer at once lets the others
#: wait, which costs nothing and leaves it no pause between two.
PARALLEL = 4


class Question(NamedTuple):
    """One problem put to one contestant."""

    contestant: Contestant
    set: str
    item: EvalItem

    @property
    def model(self) -> str:
        """The contestant's name on the server."""
        return self.contestant.model

    @property
    def digest(self) -> str:
        """Of the contestant."""
        return self.contestant.digest

    @property
    def system(self) -> str | None:
        """The system prompt sent with it: the problem's own, then the contestant's."""
        parts = [p for p in (self.item.system, self.contestant.system) if p]
        return "\n\n".join(parts) or None

    @property
    def turns(self) -> Sequence[Mapping[str, str]]:
        """The problem as the user's turn."""
        return [{"role": "user", "content": self.item.question}]

    @property
    def text(self) -> str:
        """The problem."""
        return self.item.question

    @property
    def seed(self) -> None:
        """None of its own: all problems share that of the options."""
        return


Answered = pool.Answered[Question]


class Asking(pool.Pool[Question]):
    """One pass over all questions, model after model in the order given.

    Args:
        host: the server.
        store: answers of earlier runs; new ones join them at once.
        options: of every request.
        parallel: questions at once.
        emit: hears of stop requests.
    """

    field = "eval.parallel"

    def __init__(
        self,
        host: OllamaHost,
        store: AnswerStore,
        options: Mapping[str, Any],
        *,
        parallel: int,
        emit: Emitter,
    ) -> None:
        super().__init__(host, store, options, parallel=parallel, emit=emit)
        #: Tokens of a problem's answer, by whoever gave one last: how long the next may be.
        self._lengths: dict[tuple[str, str], int] = {}

    def order(self, questions: Sequence[Question]) -> Iterator[Question]:
        """Model after model, so that each is loaded once; the answers expected to be long first."""
        for _, group in groupby(questions, key=lambda q: q.contestant):
            yield from sorted(group, key=self._expected, reverse=True)

    def heard(self, answered: Answered) -> None:
        """Notes how long the answer is."""
        question = answered.question
        self._lengths[question.set, question.item.id] = answered.answer.tokens

    def too_long(self, question: Question, error: OllamaRefused) -> Answer:
        """Raises what names the problem and the field to raise."""
        contestant = question.contestant
        raise OllamaRefused(
            f"Problem {question.item.id!r} of eval.sets.{question.set} is too long for "
            f"{contestant.role} {contestant.model}: its prompt does not fit in eval.num_ctx "
            f"({self._options.get('num_ctx')} tokens). {error.message}",
            param="eval.num_ctx",
            hint="Raise eval.num_ctx (`--set eval.num_ctx=8192`) as far as the model allows, or "
            "remove the problem from the set. Earlier answers are kept.",
        ) from error

    def _expected(self, question: Question) -> tuple[int, int]:
        # unknown ones first: they are on their way to another model, so likely long
        length = self._lengths.get((question.set, question.item.id), 1 << 30)
        return length, len(question.item.question)
