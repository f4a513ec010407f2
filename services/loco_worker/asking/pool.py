"""Asks models questions, several at once, and nothing twice."""

import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from loco.contracts.errors import OllamaRefused
from loco.serving.host import Answer, OllamaHost, Waiting
from loco.stage.program import Emitter
from loco_worker.asking.answers import AnswerStore

#: Seconds that answers on their way may take once no more are wanted: they are kept, not lost.
PATIENCE = 5.0
#: Seconds between two looks at whether a stop was asked for, while answers are waited for.
_LOOK = 0.5
#: How servers say that a prompt is longer than `num_ctx`: llama.cpp's runner, and Ollama's own.
_TOO_LONG = re.compile(r"exceeds? the (?:available |maximum )?context|exceed_context_size")


class Question(Protocol):
    """What is asked, and all that decides the answer besides the server and its options."""

    @property
    def model(self) -> str:
        """The model's name on the server."""

    @property
    def digest(self) -> str:
        """Its digest; empty: unknown, so that nothing is kept."""

    @property
    def system(self) -> str | None:
        """The system prompt sent with it; none: the model's own."""

    @property
    def turns(self) -> Sequence[Mapping[str, str]]:
        """The turns that are sent, without the system prompt."""

    @property
    def text(self) -> str:
        """The turns as one text, to find the answer again by."""

    @property
    def seed(self) -> int | None:
        """The seed of this sample; none: the one of the options."""


Q = TypeVar("Q", bound=Question)


class Answered(NamedTuple, Generic[Q]):
    """A question's answer."""

    question: Q
    answer: Answer
    #: Whether it was given in an earlier run.
    cached: bool


class Pool(Generic[Q]):
    """Threads that ask one list of questions, and those that follow from the answers.

    A server that answers one at a time is waited for as long as it answers something: only one that
    gives no answer at all for `host.seconds` is given up.

    Args:
        host: the server.
        store: answers of earlier runs; new ones join them at once.
        options: of every request.
        parallel: questions at once.
        emit: hears of stop requests.

    Attributes:
        field: the field of the spec that says `parallel`.
    """

    field = "parallel"

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
        self._waiting, self._emit = Waiting(parallel, self.field), emit
        self._changed, self._over = threading.Condition(), False
        self._feed: Iterator[Q] = iter(())
        #: Questions that follow from answers: asked before what is left of the feed.
        self._added = deque[Q]()
        self._known = deque[Answered[Q]]()
        self._done = SimpleQueue[Answered[Q] | BaseException]()
        #: Questions that somebody has to answer yet.
        self._open = 0

    def order(self, questions: Sequence[Q]) -> Iterable[Q]:
        """The questions in the order in which they are asked; read as threads get to them."""
        return questions

    def heard(self, answered: Answered[Q]) -> None:
        """Hears of an answer before it is handed out; a new one in the thread that asked."""

    def too_long(self, question: Q, error: OllamaRefused) -> Answer:  # noqa: ARG002 (of others)
        """What stands for the answer to a question that does not fit the context: here, the error."""
        raise error

    def add(self, question: Q) -> None:
        """One more question: for whoever reads `answers`, between two of them."""
        known = self._find(question)
        if known is not None:
            self._known.append(known)
            return
        with self._changed:
            self._open += 1
            self._added.append(question)
            self._changed.notify()

    def answers(self, questions: Sequence[Q]) -> Iterator[Answered[Q]]:
        """Every question's answer, as they come: first those known already. Once a pool.

        Raises:
            Stopped: a stop was asked for.
            OllamaUnavailable, OllamaRefused: as the server fails or stays silent; a question longer than the
                context as `too_long` says.
        """
        unasked = []
        for question in questions:
            known = self._find(question)
            if known is None:
                unasked.append(question)
            else:
                self._emit.check_stop()
                yield known
        self._feed = iter(self.order(unasked))
        with self._changed:
            self._open += len(unasked)
        yield from self._asked()

    def _find(self, question: Q) -> Answered[Q] | None:
        answer = self._store.find(
            question.digest, question.text, question.system, seed=question.seed
        )
        if answer is None:
            return None
        known = Answered(question, answer, cached=True)
        self.heard(known)
        return known

    def _asked(self) -> Iterator[Answered[Q]]:
        threads: list[threading.Thread] = []
        try:
            while self._known or self._open:
                if self._known:
                    self._emit.check_stop()
                    yield self._known.popleft()
                    continue
                while len(threads) < min(self._waiting.at_once, self._open):
                    threads.append(
                        threading.Thread(target=self._work, name=f"ask-{len(threads)}", daemon=True)
                    )
                    threads[-1].start()
                found = self._next()
                if isinstance(found, BaseException):
                    raise found
                self._open -= 1
                yield found
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            for thread in threads:
                thread.join(PATIENCE / len(threads))

    def _next(self) -> Answered[Q] | BaseException:
        since = time.monotonic()
        while True:
            try:
                return self._done.get(timeout=_LOOK)
            except Empty:
                self._emit.check_stop()
            silent = time.monotonic() - since
            if silent > self._host.seconds:
                return self._host.slow("give any answer", silent, self._waiting)

    def _work(self) -> None:
        try:
            while (question := self._take()) is not None:
                self._done.put(self._ask(question))
        except BaseException as error:  # noqa: BLE001 (raised again where the answers are read)
            self._done.put(error)

    def _take(self) -> Q | None:
        """The next question; waits for one while answers that may bring some are on their way."""
        with self._changed:
            while not self._over:
                self._emit.check_stop()
                question = self._added.popleft() if self._added else next(self._feed, None)
                if question is not None:
                    return question
                self._changed.wait()
        return None

    def _ask(self, question: Q) -> Answered[Q]:
        turns = [{"role": "system", "content": question.system}] if question.system else []
        seed = {} if question.seed is None else {"seed": question.seed}
        try:
            answer = self._host.converse(
                question.model,
                [*turns, *question.turns],
                {**self._options, **seed},
                waiting=self._waiting,
            )
        except OllamaRefused as error:
            if not _TOO_LONG.search(error.message):
                raise
            answer = self.too_long(question, error)
        # half a character of a cut answer comes as a lone surrogate, which no file can hold
        answer = answer._replace(text=answer.text.encode(errors="replace").decode())
        self._store.keep(
            question.digest, question.text, question.system, answer, seed=question.seed
        )
        answered = Answered(question, answer, cached=False)
        self.heard(answered)
        return answered
