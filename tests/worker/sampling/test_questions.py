"""The order of questions: gold's sample first, and what of it a job with more rows meets again."""

from collections.abc import Callable
from random import Random

import pytest

from loco.contracts.specs import JobSpec, PrepareSpec
from loco_worker.sampling.questions import _ordered
from loco_worker.sources.questions import question_of
from loco_worker.sources.rows import Row


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        question_of(n, {"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"})
        for n in range(7473)
    ]


@pytest.fixture
def first(tiny: JobSpec, rows: list[Row]) -> Callable[[int, int], list[int]]:
    """Row numbers of the first so many questions of a source of some size, with as many examples."""

    def first(size: int, examples: int) -> list[int]:
        spec = PrepareSpec.model_validate({**tiny.prepare.model_dump(), "examples": examples})
        ordered = [row.number for row in _ordered(rows[:size], spec)]
        assert sorted(ordered) == list(range(size))
        gold = [row.number for row in Random(spec.seed).sample(rows[:size], examples)]
        assert ordered[:examples] == gold, "own against gold on the same questions"
        return gold

    return first


@pytest.mark.parametrize("size", [500, 1045, 4118, 7473])
def test_twice_the_rows_begin_with_the_first_ones(
    first: Callable[[int, int], list[int]], size: int
) -> None:
    assert first(size, 400)[:200] == first(size, 200)


@pytest.mark.parametrize(
    ("size", "more", "least", "most"),
    [(7473, 2000, 0.97, 1.0), (1046, 400, 0, 0.99), (2100, 400, 0.2, 0.5), (4117, 400, 0, 0.99)],
)
def test_other_sizes_meet_a_part_of_them_as_documented(
    first: Callable[[int, int], list[int]], size: int, more: int, least: float, most: float
) -> None:
    again = len(set(first(size, more)) & set(first(size, 200))) / 200
    assert least <= again <= most
