"""Asks the base questions, each so often as needed, and grades the answers as they come."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from loco.contracts.errors import OllamaRefused
from loco.contracts.sources import SelfSource
from loco.grading.answers import without_thinking
from loco.grading.graders import grade
from loco.serving.host import Answer, OllamaHost
from loco.stage.program import Emitter
from loco_worker.asking.answers import AnswerStore
from loco_worker.asking.pool import Answered, Pool
from loco_worker.sampling.texts import Turns, asked_turns, hinted_turns, speaks_of_hint, system_of
from loco_worker.sampling.tries import Asked, Try

#: Questions at once where the recipe says `auto`: what the server does not answer at once waits there.
PARALLEL = 16
#: Reason of an answer that there is none: the question does not fit the context.
_TOO_LONG = "too long"


class Served(NamedTuple):
    """The model that is asked, and how."""

    #: Its name on the server.
    model: str
    digest: str
    server_version: str
    #: System prompt while sampling; none: the model's own.
    instruction: str | None
    #: Of stage prepare.
    seed: int


class Sample(NamedTuple):
    """One try of a question, to be asked."""

    asked: Asked
    #: From 1.
    number: int
    #: The last one of this pass, should none before be enough.
    last: int
    hint: bool
    served: Served

    @property
    def model(self) -> str:
        """The base's name on the server."""
        return self.served.model

    @property
    def digest(self) -> str:
        """Of the base."""
        return self.served.digest

    @property
    def system(self) -> str | None:
        """The question's own system prompt, then the instruction."""
        return system_of(self.asked.row, self.served.instruction)

    @property
    def turns(self) -> Turns:
        """The question, or question and hint."""
        row = self.asked.row
        return hinted_turns(row, self.asked.item) if self.hint else asked_turns(row)

    @property
    def text(self) -> str:
        """The turns as one text."""
        turns = self.turns
        return turns[0]["content"] if len(turns) == 1 else json.dumps(turns)

    @property
    def seed(self) -> int:
        """31 bits of seed, question and number: the same whatever else is asked."""
        parts = json.dumps([self.served.seed, self.text, self.number])
        return int.from_bytes(hashlib.sha256(parts.encode()).digest()[:4], "big") >> 1


class Counts:
    """What was asked and came back, hints among it."""

    def __init__(self) -> None:
        self.asked = self.known = self.right = self.unfinished = 0
        #: Of all answers, and of this run's.
        self.tokens = self.new_tokens = 0
        #: Seconds in which new answers were waited for.
        self.seconds = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of this run's answers a second; none: nothing was asked."""
        return round(self.new_tokens / self.seconds, 1) if self.new_tokens else None


class Sampler:
    """Asks and grades; what it was told is in the questions and in `counts`.

    Args:
        host: the server.
        served: who is asked, and how.
        source: samples, options, parallel.
        store: answers of earlier runs.
        emit: hears of stop requests.
        heard: called after every answer.
    """

    def __init__(
        self,
        host: OllamaHost,
        served: Served,
        source: SelfSource,
        store: AnswerStore,
        *,
        emit: Emitter,
        heard: Callable[[Asked, Counts], None],
    ) -> None:
        self._host, self._served, self._source = host, served, source
        self._store, self._emit, self._heard = store, emit, heard
        self.counts = Counts()

    def ask(
        self,
        questions: Sequence[Asked],
        tries: int,
        enough: Callable[[Asked], bool] | None,
        *,
        hint: bool = False,
    ) -> None:
        """Asks each question `tries` more times, or only until it is enough.

        Raises:
            Stopped, OllamaUnavailable, OllamaRefused: see `Pool.answers`.
        """
        done = {id(asked): len(asked.of(hint=hint)) for asked in questions}
        at_once = tries if enough is None else 1
        samples = [
            Sample(asked, done[id(asked)] + n, done[id(asked)] + tries, hint, self._served)
            for n in range(1, at_once + 1)
            for asked in questions
        ]
        pool = _Asking(
            self._host,
            self._store,
            options(self._source),
            parallel=PARALLEL if self._source.parallel == "auto" else self._source.parallel,
            emit=self._emit,
        )
        since = time.monotonic()
        for answered in pool.answers(samples):
            sample, asked = answered.question, answered.question.asked
            now = time.monotonic()
            self._count(answered, now - since)
            since = now
            asked.of(hint=hint).append(self._graded(answered))
            too_long = answered.answer.done_reason == _TOO_LONG
            # a question that only its hint makes too long is one that can be answered
            asked.too_long |= too_long and not hint
            self._heard(asked, self.counts)
            over = enough is None or enough(asked) or too_long
            if not over and sample.number < sample.last:
                pool.add(sample._replace(number=sample.number + 1))
        for asked in questions:
            asked.of(hint=hint).sort(key=lambda t: t.number)

    def _graded(self, answered: Answered[Sample]) -> Try:
        sample, answer = answered.question, answered.answer
        text = without_thinking(answer.text).strip()  # of servers that take no `think`
        graded = grade(sample.asked.item, text)
        right, why = graded.correct, graded.why
        if answer.done_reason == _TOO_LONG:
            what = "question and hint do" if sample.hint else "the question does"
            right, why = False, f"{what} not fit in prepare.source.num_ctx"
        elif answer.done_reason != "stop":
            right, why = False, "cut at num_predict"
        elif right and sample.hint and speaks_of_hint(text, sample.asked.row.question):
            right, why = False, "speaks of the hint"
        ended = answer.done_reason == "stop"
        if right:
            self.counts.right += 1
        return Try(sample.number, text, right, why, answer.tokens, ended)

    def _count(self, answered: Answered[Sample], seconds: float) -> None:
        counts, answer = self.counts, answered.answer
        counts.asked += 1
        counts.tokens += answer.tokens
        counts.unfinished += answer.done_reason == "length"
        if answered.cached:
            counts.known += 1
        else:
            counts.new_tokens += answer.tokens
            counts.seconds += seconds


def options(source: SelfSource) -> dict[str, Any]:
    """The options of every request; each brings its own seed."""
    return {
        "temperature": source.temperature,
        "top_p": source.top_p,
        "num_ctx": source.num_ctx,
        "num_predict": source.num_predict,
    }


class _Asking(Pool[Sample]):
    field = "prepare.source.parallel"

    def too_long(self, question: Sample, error: OllamaRefused) -> Answer:  # noqa: ARG002
        """An answer that says so: one long question of thousands must not end the job."""
        return Answer("", "", _TOO_LONG, 0, 0, 0.0)
