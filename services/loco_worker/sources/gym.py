"""Problems of the reasoning-gym package: any of its tasks by name and weight, seeded, offline."""

import difflib
from collections.abc import Iterator, Mapping
from itertools import count
from random import Random
from typing import Any, NamedTuple

from loco.contracts.errors import InvalidRequest

#: gsm_symbolic ends every question with this; it is an instruction to graders, not a part of the
#: problem, and as 11 shared words it would make unrelated problems look alike to the overlap check.
GRADER_INSTRUCTION = "Give the result as your final answer. Do not include units."
#: Problems a task makes at a time.
BATCH = 200


class GymProblem(NamedTuple):
    """A generated problem."""

    task: str
    question: str
    #: Worked answer ending `#### N`, where the task brings one.
    worked: str | None
    #: The bare answer.
    answer: str


def problems(tasks: Mapping[str, float], seed: int | str) -> Iterator[GymProblem]:
    """Problems without end, tasks mixed by weight; the same seed gives the same ones.

    Args:
        tasks: task name to weight (above 0; any scale).
        seed: seed of the mixture and of every task.

    Raises:
        InvalidRequest: no task of that name (close ones are named), or the task needs settings.
    """
    check_tasks(tasks)
    names = sorted(tasks)
    weights = [tasks[name] for name in names]
    # a string seed is hashed by SHA-512: near seeds give unrelated problems
    rng = Random(f"reasoning-gym {seed}")  # noqa: S311 (not for secrets)
    streams = {name: _stream(name, rng.getrandbits(31)) for name in names}
    while True:
        yield next(streams[rng.choices(names, weights)[0]])


def check_tasks(tasks: Mapping[str, float]) -> None:
    """Raises InvalidRequest when reasoning-gym has no task of a name."""
    # imported here: the package takes seconds to load and most jobs don't need it
    from reasoning_gym.factory import DATASETS  # noqa: PLC0415

    for name in tasks:
        if name not in DATASETS:
            close = difflib.get_close_matches(name, DATASETS, n=4, cutoff=0.5)
            raise InvalidRequest(
                f"reasoning-gym has no task {name!r}."
                + (f" Close ones: {', '.join(close)}." if close else ""),
                param="prepare.source.tasks",
                hint="Common ones: gsm_symbolic, basic_arithmetic, chain_sum, simple_equations.",
            )


def _stream(name: str, seed: int) -> Iterator[GymProblem]:
    import reasoning_gym  # noqa: PLC0415

    # item i of a data set is made from seed + i, so batches must lie BATCH seeds apart
    for batch in count():
        try:
            items: Any = reasoning_gym.create_dataset(name, seed=seed + batch * BATCH, size=BATCH)
        except (AssertionError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"reasoning-gym's task {name!r} does not run with its defaults: {error}",
                param="prepare.source.tasks",
                hint="Choose another task, or write its problems to a file for source jsonl.",
            ) from error
        for index in range(BATCH):
            item = items[index]
            question = str(item["question"]).replace(GRADER_INSTRUCTION, "").strip()
            worked = item["metadata"].get("answer_cot")
            yield GymProblem(name, question, worked, str(item["answer"]))
