"""How often source self will ask the base, and how long that takes: from what it answered before."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import expm1, inf, log1p, prod

from loco.contracts.figures import share
from loco.contracts.sources import (
    FRUITLESS,
    MOST_TIMES,
    ArithmeticSource,
    ReasoningGymSource,
    SelfSource,
)
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.grading import own_answers
from loco.planning.history import Answering, History

#: Shares of right answers of 2,000 GSM8K questions, 3 samples each, are spread almost evenly from 0 to 1
#: (docs/learning.md): a beta distribution of this weight and their mean. It gives 78.2 % solved in three
#: tries for 53.6 % in one; 77.9 % were measured.
_SPREAD = 2.0
#: Where questions bring something this often, 200 in a row without are never met.
_NEVER_FRUITLESS = 0.5


@dataclass(frozen=True)
class Asking:
    """What sampling would take."""

    questions: int
    answers: int
    seconds: float
    #: Usable questions that there are, all of which it takes; None: there are enough, as far as is known.
    all_of: int | None
    #: What it is computed from.
    before: Answering


def asking_of(spec: JobSpec, history: History) -> Asking | None:
    """What prepare of source self would ask; None for other sources, and where nothing is known.

    Answers that earlier jobs have left count as asked anew: which of them fit is known to prepare alone.
    Second answers and hints, where the questions run out, are not counted.
    """
    source = spec.prepare.source
    before = history.answering(spec)
    if not isinstance(source, SelfSource) or before is None:
        return None
    rows = spec.prepare.examples + spec.prepare.validation
    expected = _questions(source, rows, before.pass_rate)
    size = history.questions(spec)
    all_of = size if size is not None and size <= expected else None
    questions = round(expected) if all_of is None else all_of
    tries = float(source.samples) if source.pairs else _tries(before.pass_rate, source.samples)
    answers = round(questions * tries)
    seconds = answers * before.tokens / before.tokens_per_second
    return Asking(questions, answers, seconds, all_of, before)


def notes_on_source(spec: JobSpec, history: History, asking: Asking | None) -> Iterator[str]:
    """What to know of where the rows come from before submitting; nothing where prepare is left out.

    Args:
        spec: the job.
        history: earlier runs.
        asking: see `asking_of`.
    """
    if Stage.PREPARE not in spec.stages:
        return
    source = spec.prepare.source
    if not isinstance(source, SelfSource):
        known = history.base_score(spec)
        advice = known and own_answers.advice(
            own=False, solved=known[0].accuracy, what=f"{known[1]} (job {known[2]})"
        )
        if advice:
            yield advice
        return
    model = spec.train.base_model.ollama
    if asking is None:
        yield (
            f"How long prepare takes is not known: {model} has answered no questions of "
            f"{spec.adapter} yet. {spec.prepare.examples + spec.prepare.validation} rows need "
            "at least as many answers."
        )
        return
    before = asking.before
    questions = f"{asking.questions:,} questions"
    if asking.all_of is not None:
        questions = f"all {asking.all_of:,} usable questions that an earlier run found"
    yield (
        f"prepare asks {model} about {questions} and takes about {asking.answers:,} answers: "
        f"{share(before.pass_rate)} of the first ones were right, answers had "
        f"{before.tokens:.0f} tokens, and stage {before.stage} got "
        f"{before.tokens_per_second:.0f} tokens per second. Answers from earlier jobs are "
        "reused."
    )
    advice = own_answers.advice(
        own=True, solved=before.pass_rate, what=f"what {before.stage} asked"
    )
    if advice:
        yield advice


def _questions(source: SelfSource, rows: int, pass_rate: float) -> float:
    """Questions until there are so many rows, one each, and the pairs, or until prepare gives up.

    The first wave asks as many questions as rows are wanted, whatever comes of them.
    """
    never = _moment(1 - pass_rate, source.samples)
    wanted = [(rows, 1 - never)]
    if source.pairs:
        always = _moment(pass_rate, source.samples)
        wanted.append((source.pairs, 1 - never - always))
    asked = max(min(_over(count, part), _fruitless(part)) for count, part in wanted)
    if isinstance(source.questions, ArithmeticSource | ReasoningGymSource):
        asked = min(asked, MOST_TIMES * max(rows, source.pairs))
    return max(rows, asked)


def _over(count: int, part: float) -> float:
    return count / part if part > 0 else inf


def _fruitless(part: float) -> float:
    """Mean questions until `FRUITLESS` in a row bring nothing, where each does with probability `part`.

    Of a run of r failures of probability q: (q^-r - 1) / (1 - q), Feller, An Introduction to Probability
    Theory, vol. 1, XIII.7.
    """
    if part <= 0:
        return FRUITLESS
    if part > _NEVER_FRUITLESS:
        return inf
    return expm1(-FRUITLESS * log1p(-part)) / part


def _tries(pass_rate: float, samples: int) -> float:
    """Mean tries a question until it is solved, `samples` at most."""
    return sum(_moment(1 - pass_rate, n) for n in range(samples))


def _moment(mean: float, n: int) -> float:
    """E[x^n] of a beta distribution of weight `_SPREAD`: all of n tries come out like this."""
    return prod((mean * _SPREAD + k) / (_SPREAD + k) for k in range(n))
