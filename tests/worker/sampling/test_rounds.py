"""What happens when the questions run out: second answers, hints, the source's own."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import OllamaUnavailable
from loco.serving.host import OllamaHost
from loco_worker.sampling import base_answers, waves

pytestmark = pytest.mark.redis

#: Sampling seeds of every question that was asked, in order.
Seeds = dict[str, list[int]]


class Sums:
    """A base that answers sums as `right` says; knows which try of a question it is asked."""

    def __init__(self, right: Callable[[int, int, int], bool]) -> None:
        self.right = right
        self.seeds: Seeds = {}
        self.said = "Way {n} of adding gives {made}."

    def __call__(self, body: dict[str, Any]) -> tuple[str, str]:
        asked = body["messages"][-1]["content"]
        a, b = (int(n) for n in asked.partition("?")[0].removeprefix("What is ").split(" + "))
        seeds = self.seeds.setdefault(asked, [])
        seeds.append(body["options"]["seed"])
        assert len(set(seeds)) == len(seeds), "the same seed gives the same answer"
        made = a + b if self.right(a, b, len(seeds)) else a + b + 1
        if "\n\n" in asked:  # with a hint
            made = a + b
        return self.said.format(n=len(seeds), made=made), "stop"


@pytest.fixture
def base(answering: Any) -> Any:
    answering.models = {"smollm2:135m": "sha-base"}
    return answering


def test_second_answers_of_questions_sometimes_solved_come_first(
    run: Any, sums: Any, base: Any
) -> None:
    # 1 + n at once and always, n + 1 at the second try and always then; the others never
    base.answer = Sums(lambda a, b, n: a == 1 or (b == 1 and n > 1))
    got = run("a", url=base.url, questions=sums(15), examples=12, samples=3)
    solved = {q for q, _ in got.rows}
    assert len(got.rows) == 12
    assert len(set(got.rows)) == 12
    assert all(q.startswith("What is 1 +") or q.endswith("+ 1?") for q in solved)
    # 9 solved questions (5 and 4), then the sometimes solved ones a second time
    first, second = got.rows[:9], got.rows[9:]
    assert len({q for q, _ in first}) == len(solved) == 9
    assert all(q.endswith("+ 1?") and not q.startswith("What is 1 ") for q, _ in second)
    assert got.result.validation == 0
    assert sum(got.sampling.rows_by_tries.values()) == 12
    # not asked again: what is solved only once enough
    assert got.sampling.solved == 9


def test_no_more_than_per_question(run: Any, sums: Any, base: Any, heard: Any) -> None:
    base.answer = Sums(lambda *_: True)
    for most, rows in ((1, 6), (2, 12), (3, 18)):
        got = run(f"{most}", url=base.url, questions=sums(6), examples=20, per_question=most)
        assert len(got.rows) == len(set(got.rows)) == rows
    assert "rows instead of 20" in heard.logs
    assert "prepare.source.fallback=gold" in heard.logs


def test_the_same_text_again_is_no_second_answer(run: Any, sums: Any, base: Any) -> None:
    base.answer = Sums(lambda *_: True)
    base.answer.said = "It is {made}."
    got = run("a", url=base.url, questions=sums(3), examples=6, samples=2)
    assert len(got.rows) == 3
    assert {len(seeds) for seeds in base.answer.seeds.values()} == {3}, "one, and two more tries"


def test_known_tries_are_used_before_anything_is_asked(run: Any, sums: Any, base: Any) -> None:
    base.answer = Sums(lambda a, b, n: n > 1)
    got = run("a", url=base.url, questions=sums(4), examples=8, samples=3, pairs=1)
    assert len(got.rows) == 8
    assert got.sampling.asked == len(base.asked) == 12


def test_hints_find_what_was_never_solved_and_leave_no_trace(
    run: Any, sums: Any, base: Any
) -> None:
    base.answer = Sums(lambda a, b, n: a == 1)
    plain = run("a", url=base.url, questions=sums(10), examples=10, samples=2, per_question=1)
    assert len(plain.rows) == 4
    got = run(
        "b", url=base.url, questions=sums(10), examples=10, samples=2, per_question=1, hints=True
    )
    assert got.sampling.known == plain.sampling.asked
    assert (len(got.rows), got.sampling.hinted, got.sampling.solved) == (10, 6, 4)
    assert all(q.endswith("?") and "\n" not in q for q, _ in got.rows)
    hinted = [line for line in got.lines("samples.jsonl") if line["became"] == "hinted"]
    assert len(hinted) == 6
    assert all(line["hinted"][-1]["right"] for line in hinted)


def test_an_answer_that_speaks_of_the_hint_does_not_count(run: Any, sums: Any, base: Any) -> None:
    base.answer = Sums(lambda a, b, n: a == 1)
    base.answer.said = "As the hint says, way {n} gives {made}."
    got = run("a", url=base.url, questions=sums(10), examples=10, samples=2, hints=True)
    assert got.sampling.hinted == 0
    whys = {t["why"] for line in got.lines("samples.jsonl") for t in line["hinted"]}
    assert whys == {"speaks of the hint"}


def test_gold_rows_fill_up_and_say_so(run: Any, sums: Any, base: Any, heard: Any) -> None:
    base.answer = Sums(lambda a, b, n: a == 1)
    got = run("a", url=base.url, questions=sums(10), examples=9, per_question=1, fallback="gold")
    assert (len(got.rows), got.sampling.gold) == (9, 5)
    fates = [line["became"] for line in got.lines("samples.jsonl")]
    assert Counter(fates) == {"gold": 5, "trained": 4, "validation": 1}
    assert "with the source's own answer: 5" in heard.logs


def test_the_instruction_is_sampled_with_and_trained_only_where_asked(
    run: Any, sums: Any, base: Any
) -> None:
    base.answer = Sums(lambda *_: True)
    asked = {"questions": sums(12), "instruction": "Reason in words."}
    got = run("a", url=base.url, **asked)
    assert {system for _, system, _ in base.asked} == {"Reason in words."}
    assert {len(r["conversations"]) for r in got.lines("training_data.jsonl")} == {2}
    kept = run("b", url=base.url, train_instruction=True, **asked)
    for file in ("training_data.jsonl", "validation_data.jsonl"):
        turns = [r["conversations"][0] for r in kept.lines(file)]
        assert turns == [{"role": "system", "content": "Reason in words."}] * len(turns)


def test_pairs_hold_no_validation_question(run: Any, sums: Any, base: Any) -> None:
    base.answer = Sums(lambda a, b, n: n % 2 == 0)
    got = run("a", url=base.url, questions=sums(40), examples=5, validation=4, pairs=60)
    held = {r["conversations"][0]["content"] for r in got.lines("validation_data.jsonl")}
    paired = {p["prompt"][0]["content"] for p in got.lines("preference_data.jsonl")}
    assert len(held) == 4
    assert len(paired) >= 30
    assert not held & paired
    assert got.sampling.pairs == len(got.lines("preference_data.jsonl")) == 60


@pytest.fixture
def one_template(stage_adapters: Path) -> dict[str, str]:
    """A source of 1,500 questions that all share a long run of words."""
    story = "A farmer with a red barn and two old dogs buys"
    rows = [
        {"question": f"{story} {n} hens. How many hens are there?", "answer": f"#### {n}"}
        for n in range(1, 1501)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (stage_adapters / "math" / "farm.jsonl").write_text(text)
    return {"kind": "jsonl", "path": "farm.jsonl"}


def hens(body: dict[str, Any]) -> tuple[str, str]:
    """Always right, in words that differ with the seed."""
    number = body["messages"][-1]["content"].partition("buys ")[2].partition(" ")[0]
    return f"Way {body['options']['seed']} counts {number}.", "stop"


def test_validation_rows_that_are_not_to_be_had_are_given_up(
    run: Any, one_template: dict[str, str], base: Any, heard: Any
) -> None:
    base.answer = hens
    got = run("a", url=base.url, questions=one_template, examples=10, validation=4, overlap_ngram=8)
    assert (len(got.rows), got.result.validation) == (10, 0)
    assert got.sampling.questions == 10 + waves.FRUITLESS
    said = [e["progress"] for e in heard.events if e["type"] == "progress"]
    said = [p for p in said if (p.get("message") or "").startswith("asked ")]
    assert len(said) > 2
    assert max(p["step"] for p in said) == 10, "a row that does not stand does not count"
    assert "eta_seconds" not in said[-1]


@pytest.mark.parametrize("validation", [0, 4])
def test_pairs_of_a_base_that_is_always_right_are_given_up(
    run: Any, one_template: dict[str, str], base: Any, validation: int
) -> None:
    base.answer = hens
    got = run(
        "a",
        url=base.url,
        questions=one_template,
        examples=10,
        validation=validation,
        pairs=50,
        samples=2,
        overlap_ngram=8,
    )
    assert (len(got.rows), got.sampling.pairs) == (10, 0)
    assert waves.FRUITLESS <= got.sampling.questions <= 10 + waves.FRUITLESS


def test_a_question_longer_than_the_context_is_passed_over(
    run: Any, sums: Any, base: Any, heard: Any
) -> None:
    base.answer = Sums(lambda *_: True)
    base.refuses = lambda body: (
        "the input length exceeds the context length"
        if "What is 1 + 1?" in str(body["messages"])
        else None
    )
    got = run("a", url=base.url, questions=sums(6), examples=6, per_question=1)
    assert len(got.rows) == 5
    assert "1 questions do not fit in prepare.source.num_ctx" in heard.logs


def test_a_hint_that_does_not_fit_says_nothing_of_the_question(
    run: Any, sums: Any, base: Any, heard: Any
) -> None:
    base.answer = Sums(lambda a, b, n: a == 1)
    base.refuses = lambda body: (
        "the input length exceeds the context length"
        if "What is 2 + 1?\n\n" in str(body["messages"][-1]["content"])
        else None
    )
    got = run("a", url=base.url, questions=sums(10), examples=10, per_question=1, hints=True)
    assert (len(got.rows), got.sampling.hinted) == (9, 5)
    assert "do not fit in prepare.source.num_ctx" not in heard.logs
    (line,) = [x for x in got.lines("samples.jsonl") if x["question"] == "What is 2 + 1?"]
    assert [t["why"] for t in line["hinted"]] == [
        "question and hint do not fit in prepare.source.num_ctx"
    ]


def test_gold_rows_get_validation_rows_that_pairs_keep_away_from(
    run: Any, sums: Any, base: Any, heard: Any
) -> None:
    base.answer = Sums(lambda a, b, n: a == 1 and n > 1)
    asked = {"examples": 20, "validation": 4, "per_question": 1, "samples": 2, "pairs": 4}
    got = run("a", url=base.url, questions=sums(60), fallback="gold", **asked)
    assert (len(got.rows), got.result.validation) == (20, 4)
    assert got.sampling.gold > 0
    held = {r["conversations"][0]["content"] for r in got.lines("validation_data.jsonl")}
    assert all(
        r["conversations"][-1]["content"].startswith("The answer is ")
        for r in got.lines("validation_data.jsonl")
    )
    became = [x["question"] for x in got.lines("samples.jsonl") if x["became"] == "validation"]
    assert len(became) == len(held) == 4
    assert set(became) == held
    assert not held & {question for question, _ in got.rows}
    assert not held & {p["prompt"][0]["content"] for p in got.lines("preference_data.jsonl")}
    assert "validation rows instead" not in heard.logs


def test_unasked_questions_are_validated_on_where_gold_is_taken(
    run: Any,
    one_template: dict[str, str],
    sums: Any,
    base: Any,
    stage_adapters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waves, "FRUITLESS", 18)
    farm, few = (
        (stage_adapters / "math" / source["path"]).read_text().splitlines()[:30]
        for source in (one_template, sums(30))
    )
    (stage_adapters / "math" / "both.jsonl").write_text("\n".join(farm + few))
    base.answer = lambda _: ("no idea", "stop")
    got = run(
        "a",
        url=base.url,
        questions={"kind": "jsonl", "path": "both.jsonl"},
        examples=10,
        validation=8,
        samples=1,
        overlap_ngram=8,
        fallback="gold",
    )
    assert (got.sampling.gold, got.result.validation) == (10, 8)
    assert all("farmer" not in str(r) for r in got.lines("validation_data.jsonl"))
    assert got.sampling.questions == 18
    fates = [(bool(x["tries"]), x["became"]) for x in got.lines("samples.jsonl")]
    assert (False, "validation") in fates
    assert (False, "unsolved") not in fates


def test_missing_rows_are_not_laid_on_a_source_that_has_more(
    run: Any, sums: Any, base: Any, heard: Any
) -> None:
    base.answer = Sums(lambda a, b, n: a == 1)
    run("a", url=base.url, questions=sums(40), examples=30, per_question=1, samples=1)
    assert "0 validation rows instead of 2: too few other questions were solved" in heard.logs
    assert "the source has no more" not in heard.logs
    run("b", url=base.url, questions=sums(40), examples=50, samples=1, fallback="gold")
    assert "rows instead of 50: the source has no more usable rows" in heard.logs


def test_a_silent_server_is_told_by_the_field_that_asks_less_at_once(
    run: Any, sums: Any, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    base.answer = lambda _: (str(release.wait(20)), "stop")
    monkeypatch.setattr(base_answers, "OllamaHost", partial(OllamaHost, seconds=1.0))
    with pytest.raises(OllamaUnavailable, match="did not give any answer") as caught:
        run("a", url=base.url, questions=sums(12))
    release.set()
    assert caught.value.param == "prepare.source.parallel"
    assert "prepare.source.parallel below 16" in str(caught.value.hint)


def test_a_server_that_dies_loses_nothing(run: Any, sums: Any, base: Any) -> None:
    solve = Sums(lambda *_: True)

    def answer(body: dict[str, Any]) -> tuple[str, str]:
        if len(base.asked) >= 5:
            raise ConnectionAbortedError
        return solve(body)

    asked = {"questions": sums(12), "parallel": 1}
    base.answer = answer
    with pytest.raises(OllamaUnavailable) as caught:
        run("a", url=base.url, **asked)
    assert caught.value.retryable
    base.answer = solve = Sums(lambda *_: True)
    got = run("a", url=base.url, **asked)
    assert got.sampling.known == 5
    assert sum(map(len, solve.seeds.values())) == got.sampling.asked - 5
