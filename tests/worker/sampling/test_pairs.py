"""Pairs of a right and a wrong answer."""

from loco_worker.sampling.pairs import pairs_of
from loco_worker.sampling.tries import Asked, Try
from loco_worker.sources.questions import question_of


def asked(number: int, rights: int, wrongs: int) -> Asked:
    row = question_of(number, {"question": f"What is {number} + 0?", "answer": str(number)})
    texts = [(f"right {n} gives {number}", True) for n in range(rights)]
    texts += [(f"wrong {n} gives {number + 1}", False) for n in range(wrongs)]
    return Asked(row, [Try(n, t, r, None, 3, True) for n, (t, r) in enumerate(texts, start=1)])


def short(pairs: list[dict[str, list[dict[str, str]]]]) -> list[tuple[str, str, str]]:
    return [
        (p["prompt"][-1]["content"], p["chosen"][0]["content"], p["rejected"][0]["content"])
        for p in pairs
    ]


def test_one_a_question_first_then_further_ones_of_other_answers() -> None:
    questions = [asked(1, 2, 3), asked(2, 3, 0), asked(3, 1, 2), asked(4, 0, 3)]
    assert short(pairs_of(questions, 10, 2, None)) == [
        ("What is 1 + 0?", "right 0 gives 1\nThe answer is 1", "wrong 0 gives 2"),
        ("What is 3 + 0?", "right 0 gives 3\nThe answer is 3", "wrong 0 gives 4"),
        ("What is 1 + 0?", "right 1 gives 1\nThe answer is 1", "wrong 1 gives 2"),
    ]
    assert len(pairs_of(questions, 2, 2, None)) == 2
    assert len(pairs_of(questions, 10, 1, None)) == 2
    assert pairs_of(questions, 0, 2, None) == []


def test_turns_are_those_of_the_rows() -> None:
    [pair] = pairs_of([asked(1, 1, 1)], 1, 1, "In words.")
    assert [turn["role"] for turn in pair["prompt"]] == ["system", "user"]
    assert pair["prompt"][0]["content"] == "In words."
    assert [turn["role"] for part in ("chosen", "rejected") for turn in pair[part]] == [
        "assistant",
        "assistant",
    ]
