"""Asks models questions, several at once, and nothing twice."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from queue import SimpleQueue
from typing import Any, NamedTuple

from loco.contracts.errors import OllamaRefused
from loco.grading.eval_items import EvalItem
from loco.serving.host import Answer, OllamaHost
from loco.stage.program import Emitter
from loco_worker.measuring.answers import AnswerStore
from loco_worker.measuring.models import Contestant

#: Questions at once where the recipe says `auto`: a server that answers fewer at once lets the others
#: wait, which costs nothing and leaves it no pause between two.
PARALLEL = 4
#: Seconds that answers on their way may take once no more are wanted: they are kept, not lost.
PATIENCE = 5.0
#: How servers say that a prompt is longer than `num_ctx`: llama.cpp's runner, and Ollama's own.
_TOO_LONG = re.compile(r"exceeds? the (?:available |maximum )?context|exceed_context_size")


class Question(NamedTuple):
    """One problem put to one contestant."""

    contestant: Contestant
    set: str
    item: EvalItem

    @property
    def system(self) -> str | None:
        """The system prompt sent with it: the problem's own, then the contestant's."""
        parts = [p for p in (self.item.system, self.contestant.system) if p]
        return "\n\n".join(parts) or None


class Answered(NamedTuple):
    """A question's answer."""

    question: Question
    answer: Answer
    #: Whether it was given in an earlier run.
    cached: bool


class Asking:
    """One pass over all questions, model after model in the order given.

    Args:
        host: the server.
        store: answers of earlier runs; new ones join them at once.
        options: of every request.
        parallel: questions at once.
        emit: hears of stop requests.
    """

    def __init__(
        self,
        host: OllamaHost,
        store: AnswerStore,
        options: Mapping[str, Any],
        *,
        parallel: int,
        emit: Emitter,
    ) -> None:
        self._host, self._store, self._options = host, store, options
        self._parallel, self._emit = parallel, emit
        self._lock, self._over = threading.Lock(), threading.Event()
        #: Tokens of a problem's answer, by whoever gave one last: how long the next may be.
        self._lengths: dict[tuple[str, str], int] = {}

    def answers(self, questions: Sequence[Question]) -> Iterator[Answered]:
        """Every question's answer, as they come: first those known already.

        Raises:
            Stopped: a stop was asked for.
            OllamaUnavailable, OllamaRefused: as the server fails; a question longer than the
                context is named.
        """
        unasked = []
        for question in questions:
            known = self._store.find(
                question.contestant.digest, question.item.question, question.system
            )
            if known is None:
                unasked.append(question)
            else:
                self._note(question, known)
                yield Answered(question, known, cached=True)
        yield from self._asked(unasked)

    def _asked(self, questions: Sequence[Question]) -> Iterator[Answered]:
        feed, done = self._feed(questions), SimpleQueue[Answered | BaseException]()
        threads = [
            threading.Thread(target=self._work, args=(feed, done), name=f"ask-{n}", daemon=True)
            for n in range(min(self._parallel, len(questions)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in questions:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            self._over.set()
            for thread in threads:
                thread.join(PATIENCE / len(threads))

    def _feed(self, questions: Sequence[Question]) -> Iterator[Question]:
        """Model after model, so that each is loaded once; the answers expected to be long first."""
        for _, group in groupby(questions, key=lambda q: q.contestant):
            yield from sorted(group, key=self._expected, reverse=True)

    def _expected(self, question: Question) -> tuple[int, int]:
        # unknown ones first: they are on their way to another model, so likely long
        length = self._lengths.get((question.set, question.item.id), 1 << 30)
        return length, len(question.item.question)

    def _work(
        self, feed: Iterator[Question], done: "SimpleQueue[Answered | BaseException]"
    ) -> None:
        try:
            while not self._over.is_set():
                self._emit.check_stop()
                with self._lock:
                    question = next(feed, None)
                if question is None:
                    return
                done.put(self._ask(question))
        except BaseException as error:  # noqa: BLE001 (raised again where the answers are read)
            done.put(error)

    def _ask(self, question: Question) -> Answered:
        contestant, text = question.contestant, question.item.question
        turns = [{"role": "system", "content": question.system}] if question.system else []
        turns.append({"role": "user", "content": text})
        try:
            answer = self._host.converse(contestant.model, turns, self._options)
        except OllamaRefused as error:
            if not _TOO_LONG.search(error.message):
                raise
            raise self._too_long(question, error) from error
        # half a character of a cut answer comes as a lone surrogate, which no file can hold
        answer = answer._replace(text=answer.text.encode(errors="replace").decode())
        self._store.keep(contestant.digest, text, question.system, answer)
        self._note(question, answer)
        return Answered(question, answer, cached=False)

    def _too_long(self, question: Question, error: OllamaRefused) -> OllamaRefused:
        contestant = question.contestant
        return OllamaRefused(
            f"Problem {question.item.id!r} of eval.sets.{question.set} is too long for "
            f"{contestant.role} {contestant.model}: its prompt does not fit into eval.num_ctx, "
            f"{self._options.get('num_ctx')} tokens. {error.message}",
            param="eval.num_ctx",
            hint="Raise eval.num_ctx (`--set eval.num_ctx=8192`) as far as the model goes, or take "
            "the problem out of the set. What was answered before is kept.",
        )

    def _note(self, question: Question, answer: Answer) -> None:
        self._lengths[question.set, question.item.id] = answer.tokens
