from collections import Counter
from itertools import islice

from loco.grading.answers import extract
from loco_worker.sources import arithmetic


def made(seed: int, count: int) -> list[arithmetic.Problem]:
    return list(islice(arithmetic.problems(seed), count))


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert made(3, 200) == made(3, 200)
    shared = {p.question for p in made(3, 200)} & {p.question for p in made(4, 200)}
    assert len(shared) < 30


def test_a_known_problem_of_a_seed_stays_what_it_is() -> None:
    # training data of old jobs must be reproducible: a change here needs a new stage version
    assert made(0, 1)[0].question == (
        "Zoe has 52 coins and gets 37 more. How many coins does Zoe have now?"
    )


def test_the_worked_answer_computes_the_answer() -> None:
    for problem in made(1, 3000):
        steps = problem.work.replace(", so ", "; ").split("; ")
        for step in steps:
            left, *values = step.split(" = ")
            for value in [left, *values]:
                if not any(c in value for c in "x%"):
                    # eval: the text is generated here and holds digits and operators only
                    assert set(value) <= set("0123456789 +-*/")
            numbers = [v for v in values if not any(c in v for c in "x%")]
            assert len({round(eval(v), 9) for v in numbers}) == 1, problem
        found = extract(problem.work)
        assert found is not None
        assert found.value == problem.answer


def test_every_prefix_is_balanced_over_the_kinds() -> None:
    counts = Counter(p.kind for p in made(5, 22))
    assert set(counts.values()) == {2}
    assert set(counts) == set(arithmetic.KINDS)


def test_there_are_thousands_of_different_questions() -> None:
    problems = made(0, 5000)
    assert len({p.question for p in problems}) > 4000
    assert len({p.key for p in problems}) > 2500


def test_problems_and_worked_answers_are_short() -> None:
    for problem in made(2, 1000):
        assert len(problem.question.split()) <= 22
        assert "\n" not in problem.work
        assert len(problem.work) <= 45
