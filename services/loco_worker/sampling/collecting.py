"""From questions to training rows, validation rows and pairs: waves, further rounds, hints, fallback."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from loco.contracts.sources import MOST_TIMES, SelfSource
from loco.contracts.specs import PrepareSpec
from loco.stage.program import Emitter
from loco_worker.sampling.progress import Progress
from loco_worker.sampling.questions import Questions
from loco_worker.sampling.samples import Sampler
from loco_worker.sampling.standing import Standing
from loco_worker.sampling.tries import Asked, Try
from loco_worker.sources.rows import Row
from loco_worker.sources.validation import apart


class Taken(NamedTuple):
    """A training or validation row: a question and the answer that was taken."""

    asked: Asked
    kind: Literal["own", "hinted", "gold"]
    #: The answer; None: the source's own.
    answer: Try | None


class Collection(NamedTuple):
    """What sampling ends with."""

    #: The questions that were asked, in order, then those taken with the source's own answer unasked.
    asked: list[Asked]
    rows: list[Taken]
    validation: list[Taken]
    pairs: list[dict[str, Any]]


class Collecting:
    """One collection; `source` is `spec.source`.

    Args:
        questions: to take from.
        sampler: asks them.
        spec: what is wanted.
        source: how it is come by.
        emit: hears of stop requests.
        progress: hears how far it is.
    """

    def __init__(
        self,
        questions: Questions,
        sampler: Sampler,
        spec: PrepareSpec,
        source: SelfSource,
        *,
        emit: Emitter,
        progress: Progress,
    ) -> None:
        self._questions, self._sampler = questions, sampler
        self._spec, self._source, self._emit, self._progress = spec, source, emit, progress
        self._standing = Standing(spec, source, emit)
        self._asked: list[Asked] = []

    def run(self) -> Collection:
        """Asks until all is there or nothing more is to be had.

        Raises:
            Stopped, OllamaUnavailable, OllamaRefused: see `Sampler.ask`.
        """
        self._waves()
        standing = self._standing
        rows = [Taken(asked, "own", asked.rights()[0]) for asked in standing.trained]
        for more in (self._further, self._hinted, self._gold):
            missing = self._spec.examples - len(rows)
            if missing > 0:
                rows += more(missing)
        validation = [Taken(asked, "own", asked.rights()[0]) for asked in standing.validation]
        validation += self._gold_validation(rows)
        return Collection(self._asked, rows, validation, standing.pairs())

    def _waves(self) -> None:
        spec, source = self._spec, self._source
        most = MOST_TIMES * max(spec.examples + spec.validation, source.pairs)
        until: Callable[[Asked], bool] | None = None if source.pairs else _solved
        while size := self._standing.wave():
            if self._questions.generated:
                size = min(size, most - len(self._asked))
            wave = self._questions.take(size)
            if not wave:
                return
            self._progress.wave(self._standing)
            self._sampler.ask(wave, source.samples, until)
            self._asked += wave
            self._standing.add(wave)

    def _further(self, missing: int) -> list[Taken]:
        """A second, third, … answer of questions that have one: first those not always solved."""
        taken: list[Taken] = []
        for nth in range(2, self._source.per_question + 1):
            able = [q for q in self._asked if len(q.rights()) >= nth - 1]
            able = [q for q in able if q.mixed] + [q for q in able if not q.mixed]

            def has(asked: Asked, nth: int = nth) -> bool:
                return len(asked.rights()) >= nth

            while able and len(taken) < missing:
                batch, able = _split(able, missing - len(taken))
                self._progress.further(self._spec.examples - missing + len(taken), self._standing)
                short = [q for q in batch if not has(q)]
                self._sampler.ask(short, self._source.samples, has)
                taken += [Taken(q, "own", q.rights()[nth - 1]) for q in batch if has(q)]
        return taken

    def _hinted(self, missing: int) -> list[Taken]:
        """Answers found with the right one as a hint, of questions that were never solved."""
        taken: list[Taken] = []
        able = [q for q in self._asked if not q.solved and not q.too_long and q.item.answer]
        while self._source.hints and able and len(taken) < missing:
            batch, able = _split(able, missing - len(taken))
            self._sampler.ask(batch, self._source.samples, _solved_with_hint, hint=True)
            taken += [
                Taken(q, "hinted", next(t for t in q.hinted if t.right))
                for q in batch
                if _solved_with_hint(q)
            ]
        return taken

    def _gold(self, missing: int) -> list[Taken]:
        """The source's own answers: of questions never solved, then of others."""
        if self._source.fallback != "gold":
            return []
        taken = [Taken(q, "gold", None) for q in self._asked if _only_gold(q)][:missing]
        while len(taken) < missing and (more := self._questions.take(missing - len(taken))):
            self._asked += more
            taken += [Taken(q, "gold", None) for q in more if _only_gold(q)]
        return taken

    def _gold_validation(self, rows: Sequence[Taken]) -> list[Taken]:
        """Validation rows with the source's own answers, of questions that no row was taken from."""
        missing = self._spec.validation - len(self._standing.validation)
        if self._source.fallback != "gold" or missing <= 0:
            return []
        trained = {id(taken.asked) for taken in rows}
        met: dict[int, Asked] = {}
        unasked = iter(lambda: self._questions.take(1), [])

        def candidates() -> Iterator[Row]:
            for asked in chain(list(self._asked), chain.from_iterable(unasked)):
                if id(asked) not in trained and _only_gold(asked):
                    met[asked.row.number] = asked
                    yield asked.row

        chosen = apart(candidates(), [t.asked.row for t in rows], self._spec, self._emit)[:missing]
        held = [met[row.number] for row in chosen]
        known = {id(asked) for asked in self._asked}
        self._asked += [asked for asked in held if id(asked) not in known]
        self._standing.hold_out(held)
        return [Taken(asked, "gold", None) for asked in held]


def _only_gold(asked: Asked) -> bool:
    """Whether the source has the only right answer that there is to train on."""
    given = asked.row.conversations[-1]["content"]
    return bool(given) and not asked.solved and not _solved_with_hint(asked)


def _solved(asked: Asked) -> bool:
    return asked.solved


def _solved_with_hint(asked: Asked) -> bool:
    return any(t.right for t in asked.hinted)


def _split(questions: Sequence[Asked], count: int) -> tuple[list[Asked], list[Asked]]:
    return list(questions[:count]), list(questions[count:])
