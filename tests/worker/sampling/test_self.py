"""Source self from the spec to the files, against a server whose answers are made up."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from loco.contracts.errors import DataError, InvalidRequest, OllamaRefused
from loco.contracts.specs import PrepareSpec
from loco.stage.program import Emitter, Stopped
from loco_worker import prepare

pytestmark = pytest.mark.redis


@pytest.fixture
def base(answering: Any) -> Any:
    """A base that is served; how good it is is up to `solving`."""
    answering.models = {"smollm2:135m": "sha-base"}
    return answering


def solving(right: Callable[[int, int, int], bool]) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """Answers sums rightly where `right(a, b, seed)` says so."""

    def answer(body: dict[str, Any]) -> tuple[str, str]:
        question = body["messages"][-1]["content"].partition("?")[0]
        a, b = (int(n) for n in question.removeprefix("What is ").split(" + "))
        seed = body["options"]["seed"]
        made = a + b if right(a, b, seed) else a + b + 1
        return f"Way {seed % 97} of adding gives {made}.", "stop"

    return answer


def test_only_verified_answers_become_rows(run: Any, sums: Any, base: Any) -> None:
    base.answer = solving(lambda a, b, seed: seed % 2 == 0)
    got = run("a", url=base.url, questions=sums(60), examples=10, validation=3)
    assert len(got.rows) == 10
    for question, answer in got.rows:
        a, b = (int(n) for n in question.removeprefix("What is ").rstrip("?").split(" + "))
        assert answer.endswith(f"gives {a + b}.\nThe answer is {a + b}")
    assert got.result.validation == 3
    asked = {q for q, _ in got.rows}
    held = {line["conversations"][0]["content"] for line in got.lines("validation_data.jsonl")}
    assert not asked & held
    assert sum(got.sampling.rows_by_tries.values()) == 10
    assert 0.2 < got.sampling.pass_rate < 0.8
    assert got.sampling.advice == ()
    assert got.lines("preference_data.jsonl") == []


def test_the_questions_are_those_that_gold_rows_have(
    run: Any, sums: Any, base: Any, spec_of: Any, inputs_of: Any, tmp_path: Any, heard: Any
) -> None:
    base.answer = solving(lambda *_: True)
    questions = sums(60)
    own = run("a", url=base.url, questions=questions, examples=10, seed=3)
    spec = PrepareSpec.model_validate({"source": questions, "examples": 10, "seed": 3})
    (tmp_path / "gold").mkdir()
    prepare.run(spec, inputs_of(), tmp_path / "gold", heard.emit)
    gold = [
        json.loads(line)["conversations"][0]["content"]
        for line in (tmp_path / "gold" / "training_data.jsonl").read_text().splitlines()
    ]
    assert [question for question, _ in own.rows] == gold


def test_timing_decides_nothing(run: Any, sums: Any, base: Any) -> None:
    """Answers overtake each other, in waves, second answers and hints."""
    solve = solving(lambda a, b, seed: a % 3 > 0 and seed % 3 == 0)

    def answer(body: dict[str, Any]) -> tuple[str, str]:
        question, _, hint = body["messages"][-1]["content"].partition("\n\n")
        of = f"{question} {body['options']['seed']}".encode()
        # one in ten takes long: with 16 at once later tries of the same question are there before it
        time.sleep(0.12 * (hashlib.sha256(of).digest()[0] % 10 == 0))
        if hint:  # told the result, it is right by chance all the same
            return solving(lambda a, b, seed: seed % 2 == 0)(body)
        return solve(body)

    base.answer = answer
    asked = {"questions": sums(24), "examples": 40}
    for more in ({"hints": True}, {"pairs": 12, "hints": True, "fallback": "gold"}):
        kind = "pairs" if "pairs" in more else "rows"
        first = run(f"{kind}1", url=base.url, answers=f"{kind}1", parallel=1, **asked, **more)
        second = run(f"{kind}16", url=base.url, answers=f"{kind}16", parallel=16, **asked, **more)
        assert first.content == second.content
        assert first.sampling.known == second.sampling.known == 0
        assert len({q for q, _ in first.rows}) < len(first.rows), "second answers were asked for"
        assert first.sampling.hinted, "and hints"
        assert base.most_at_once > 1
    other = run("other", url=base.url, answers="rows16", seed=5, hints=True, **asked)
    assert other.lines("training_data.jsonl") != run(
        "again", url=base.url, answers="rows16", hints=True, **asked
    ).lines("training_data.jsonl")


def test_a_second_job_with_more_examples_goes_on(run: Any, sums: Any, base: Any) -> None:
    base.answer = solving(lambda a, b, seed: seed % 2 == 0)
    questions = sums(300)
    first = run("a", url=base.url, questions=questions, examples=22)
    second = run("b", url=base.url, questions=questions, examples=40)
    assert second.sampling.known >= 0.9 * first.sampling.asked
    assert len(base.asked) == first.sampling.asked + second.sampling.asked - second.sampling.known


def test_a_base_that_solves_nothing_gets_the_advice(run: Any, sums: Any, base: Any) -> None:
    base.answer = solving(lambda *_: False)
    questions = sums(60)
    with pytest.raises(DataError, match="solved 0 of 60 questions") as caught:
        run("a", url=base.url, questions=questions, samples=1)
    assert "Train on rows with answers" in str(caught.value.hint)
    assert "0 % of the questions of sums.jsonl" in str(caught.value.hint)
    gold = run("b", url=base.url, questions=questions, samples=1, fallback="gold")
    assert len(gold.rows) == gold.sampling.gold == 6
    assert all(answer.startswith("The answer is ") for _, answer in gold.rows)
    assert gold.sampling.advice


def test_a_generator_is_not_asked_for_ever(run: Any, base: Any) -> None:
    base.answer = lambda _: ("no idea", "stop")
    # ten times the 8 rows wanted
    with pytest.raises(DataError, match="solved 0 of 80 questions"):
        run("a", url=base.url, samples=1)
    assert base.unloaded == ["smollm2:135m"]


def test_a_spec_without_a_base_is_refused(run: Any, base: Any, spec_of: Any, heard: Any) -> None:
    spec = spec_of().model_copy(update={"base_model": None})
    with pytest.raises(InvalidRequest) as caught:
        prepare.run(spec, None, None, heard.emit)  # type: ignore[arg-type]
    assert caught.value.param == "prepare.base_model"


def test_questions_of_the_eval_sets_are_not_asked(
    run: Any, sums: Any, base: Any, stage_adapters: Any
) -> None:
    base.answer = solving(lambda *_: True)
    items = [{"id": str(n), "question": f"What is 1 + {n}?", "answer": n + 1} for n in range(1, 9)]
    text = "".join(json.dumps(item) + "\n" for item in items)
    (stage_adapters / "math" / "held.jsonl").write_text(text)
    held = {"held": {"source": {"kind": "jsonl", "path": "held.jsonl"}}}
    got = run("a", url=base.url, questions=sums(21), examples=40, eval_sets=held)
    assert got.result.dropped.overlap == len(got.result.overlaps) == 6
    assert not {q for _, _, q in base.asked} & {item["question"] for item in items}
    assert got.sampling.questions == 15


def test_a_base_that_stays_loaded_is_no_failure(run: Any, sums: Any, base: Any, heard: Any) -> None:
    base.answer = solving(lambda *_: True)
    base.unloads = False
    run("a", url=base.url, questions=sums(20))
    assert "stays in Ollama's memory" in heard.logs


def test_the_base_is_unloaded_whatever_came_of_it(
    run: Any, sums: Any, base: Any, heard: Any
) -> None:
    solve = solving(lambda *_: True)

    def stopped(body: dict[str, Any]) -> tuple[str, str]:
        heard.emit.request_stop()
        return solve(body)

    base.answer = stopped
    with pytest.raises(Stopped):
        run("a", url=base.url, questions=sums(20))
    assert len(base.unloaded) == 1
    base.answer, base.refuses = solve, lambda _: "it is broken"
    with pytest.raises(OllamaRefused, match="it is broken"):
        run("b", url=base.url, questions=sums(20), emit=Emitter(io.StringIO()), seed=1)
    assert len(base.unloaded) == 2
    base.refuses = lambda _: None
    run("c", url=base.url, questions=sums(20), emit=Emitter(io.StringIO()))
    assert len(base.unloaded) == 3
    # an attempt that knows every answer, after one that was killed before it could unload
    known = run("d", url=base.url, questions=sums(20), emit=Emitter(io.StringIO()))
    assert known.sampling.known == known.sampling.asked
    assert len(base.unloaded) == 4


def told(heard: Any) -> list[dict[str, Any]]:
    """The progress that sampling told."""
    every = [e["progress"] for e in heard.events if e["type"] == "progress"]
    return [p for p in every if (p.get("message") or "").startswith("asked ")]


def test_progress_says_how_far_it_is(run: Any, sums: Any, base: Any, heard: Any) -> None:
    base.answer = solving(lambda *_: True)
    base.seconds = 0.15
    run("a", url=base.url, questions=sums(20), parallel=1)
    said = told(heard)
    assert len(said) >= 6
    assert [p["step"] for p in said] == sorted(p["step"] for p in said)
    assert {p["total_steps"] for p in said} == {8}
    assert said[-1]["percent"] < 100
    assert said[3]["tokens_per_second"] > 0
    assert said[3]["eta_seconds"] > 0
    assert said[3]["message"] == "asked 4, right 4"
    last = [e["progress"] for e in heard.events if e["type"] == "progress"][-1]
    assert last["percent"] == 100


def test_progress_of_pairs_that_never_come_is_not_that_of_the_rows(
    run: Any, sums: Any, base: Any, heard: Any
) -> None:
    base.answer = solving(lambda *_: True)
    base.seconds = 0.1
    asked = {"questions": sums(16), "examples": 4, "validation": 2, "samples": 1, "pairs": 10}
    got = run("a", url=base.url, parallel=1, **asked)
    assert (len(got.rows), got.result.validation, got.sampling.pairs) == (4, 2, 0)
    said = told(heard)
    assert {p["total_steps"] for p in said} == {16}
    assert [p["step"] for p in said] == sorted(p["step"] for p in said)
    assert said[-1]["step"] == 6
    assert said[-1]["percent"] == 37.5
    assert not any("eta_seconds" in p for p in said), "how fast pairs come is not known"


def test_a_stop_keeps_what_was_answered(run: Any, sums: Any, base: Any, heard: Any) -> None:
    solve = solving(lambda *_: True)

    def answer(body: dict[str, Any]) -> tuple[str, str]:
        if len(base.asked) == 4:
            heard.emit.request_stop()
        return solve(body)

    base.answer = answer
    with pytest.raises(Stopped):
        run("a", url=base.url, questions=sums(20), parallel=2)
    stopped_at = len(base.asked)
    assert 4 <= stopped_at < 8
    base.answer = solve
    got = run("a", url=base.url, questions=sums(20), emit=Emitter(io.StringIO()))
    assert got.sampling.known >= 4
    assert len(base.asked) <= got.sampling.asked + stopped_at - 4


def test_questions_held_back_to_measure_with_are_not_asked(run: Any, sums: Any, base: Any) -> None:
    base.answer = solving(lambda *_: True)
    split = {"split": {"source": {"kind": "split"}}}
    got = run("a", url=base.url, questions=sums(60), examples=60, eval_sets=split)
    problems = got.lines("eval_sets/split.jsonl")
    assert len(problems) == 20
    assert all(problem["answer"].isdigit() for problem in problems)
    assert got.sampling.questions == 40
    assert not {q for _, _, q in base.asked} & {problem["question"] for problem in problems}
