"""What sampling came to: the figures of the result, advice, a line a question."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from loco.contracts.results import Sampling
from loco.grading.own_answers import advice
from loco_worker.sampling.collecting import Collection
from loco_worker.sampling.samples import Counts, Served
from loco_worker.sampling.tries import Try


def sampling_of(
    served: Served, description: str, collection: Collection, counts: Counts
) -> Sampling:
    """The figures of a collection; `description` is the questions' source in words."""
    asked = [q for q in collection.asked if q.tries]
    kinds = Counter(taken.kind for taken in collection.rows)
    tries = Counter(t.answer.number for t in collection.rows if t.kind == "own" and t.answer)
    pass_rate = sum(q.tries[0].right for q in asked) / len(asked) if asked else 0.0
    said = advice(own=True, solved=pass_rate, what=f"the questions of {description}")
    return Sampling(
        model=served.model,
        digest=served.digest,
        server_version=served.server_version,
        questions=len(asked),
        asked=counts.asked,
        known=counts.known,
        right=counts.right,
        unfinished=counts.unfinished,
        pass_rate=round(pass_rate, 4),
        solved=sum(q.solved for q in asked),
        rows_by_tries=dict(sorted(tries.items())),
        hinted=kinds["hinted"],
        gold=kinds["gold"],
        pairs=len(collection.pairs),
        tokens=counts.tokens,
        tokens_per_second=counts.tokens_per_second,
        advice=(said,) if asked and said else (),
    )


def in_words(sampling: Sampling) -> str:
    """The figures for people."""
    return (
        f"{sampling.model} solved {sampling.solved} of {sampling.questions} questions, "
        f"{sampling.pass_rate:.1%} of them at the first try; {sampling.right} of {sampling.asked} answers "
        f"are right, {sampling.unfinished} were cut at num_predict"
    )


def sample_lines(collection: Collection) -> Iterator[dict[str, Any]]:
    """A line a question: its answers, and what became of it."""
    became = {id(t.asked): "trained" if t.kind == "own" else t.kind for t in collection.rows}
    validation = {id(taken.asked) for taken in collection.validation}
    for asked in collection.asked:
        fate: str = became.get(id(asked), "spare" if asked.solved else "unsolved")
        if id(asked) in validation:
            fate = "validation"
        yield {
            "row": asked.row.number,
            "id": asked.item.id,
            "question": asked.row.question,
            "expected": asked.item.answer,
            "became": fate,
            "tries": [_line(one) for one in asked.tries],
            "hinted": [_line(one) for one in asked.hinted],
        }


def _line(one: Try) -> dict[str, Any]:
    return {
        "number": one.number,
        "answer": one.text,
        "right": one.right,
        "why": one.why,
        "tokens": one.tokens,
        "ended": one.ended,
    }
