"""Questions asked several at once, none twice, none lost by a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import OllamaRefused, OllamaUnavailable
from loco.contracts.results import EvalResult
from loco.contracts.specs import EvalSpec, Inputs, JobSpec, StageRun
from loco.contracts.stages import Stage
from loco.grading.eval_items import EvalItem
from loco.serving.host import OllamaHost
from loco.stage.program import Stopped
from loco_worker.asking.answers import AnswerStore
from loco_worker.measuring.asking import Asking, Question
from loco_worker.measuring.models import Contestant

BASE = Contestant("base", "small:1b", "sha-base")
CANDIDATE = Contestant("candidate", "locollm-math:j1", "sha-candidate")


def items(count: int) -> list[EvalItem]:
    return [EvalItem(id=str(n), question=f"{'long ' * n}{n}?", answer="7") for n in range(count)]


@pytest.fixture
def asking(answering: Any, tmp_path: Path, heard: Any) -> Iterator[Callable[..., Asking]]:
    with OllamaHost(answering.url) as host:

        def make(parallel: int = 1) -> Asking:
            store = AnswerStore(tmp_path / "answers", server_version="1", options={})
            return Asking(host, store, {"seed": 1}, parallel=parallel, emit=heard.emit)

        yield make


def test_models_are_asked_in_turn_and_long_answers_first(asking: Any, answering: Any) -> None:
    lengths = {"0?": 5, "long 1?": 50, "long long 2?": 20}
    answering.answer = lambda body: ("7 " * lengths[body["messages"][-1]["content"]], "stop")
    questions = [Question(who, "s", item) for who in (BASE, CANDIDATE) for item in items(3)]
    got = list(asking().answers(questions))
    assert len(got) == 6
    # the base by length of the question, the candidate by the length of the base's answer
    assert [(model, text) for model, _, text in answering.asked] == [
        ("small:1b", "long long 2?"),
        ("small:1b", "long 1?"),
        ("small:1b", "0?"),
        ("locollm-math:j1", "long 1?"),
        ("locollm-math:j1", "long long 2?"),
        ("locollm-math:j1", "0?"),
    ]


def test_as_many_at_once_as_asked_for(asking: Any, answering: Any) -> None:
    answering.seconds = 0.05
    list(asking(parallel=3).answers([Question(BASE, "s", item) for item in items(9)]))
    assert answering.most_at_once == 3


def test_the_field_that_asks_less_at_once_is_named() -> None:
    name, _, field = Asking.field.partition(".")
    assert name == "eval"
    assert field in EvalSpec.model_fields


def test_what_was_answered_is_not_asked_again(asking: Any, answering: Any) -> None:
    questions = [Question(BASE, "s", item) for item in items(4)]
    list(asking().answers(questions[:3]))
    got = list(asking().answers(questions))
    assert len(answering.asked) == 4
    assert [a.cached for a in got] == [True, True, True, False]
    # another system prompt is another question
    list(asking().answers([Question(BASE._replace(system="In words."), "s", items(1)[0])]))
    assert answering.asked[-1] == ("small:1b", "In words.", "0?")


def test_an_empty_answer_is_asked_again(asking: Any, answering: Any) -> None:
    answering.answer = lambda _: ("", "stop")
    question = Question(BASE, "s", items(1)[0])
    assert [a.answer.text for a in asking().answers([question])] == [""]
    answering.answer = lambda _: ("7", "stop")
    assert [a.answer.text for a in asking().answers([question])] == ["7"]


def test_a_refusal_ends_it_and_what_came_before_is_kept(asking: Any, answering: Any) -> None:
    def answer(body: dict[str, Any]) -> tuple[str, str]:
        if body["messages"][-1]["content"] == "0?":
            raise ConnectionAbortedError
        return "7", "stop"

    answering.answer = answer
    questions = [Question(BASE, "s", item) for item in items(4)]
    with pytest.raises(OllamaUnavailable, match="No Ollama answers"):
        list(asking().answers(questions))
    answering.answer = lambda _: ("7", "stop")
    assert [a.cached for a in asking().answers(questions)] == [True, True, True, False]


@pytest.mark.parametrize(
    "said",
    [
        '{"error":{"code":400,"message":"request (99 tokens) exceeds the available context size '
        '(64 tokens), try increasing it","type":"exceed_context_size_error"}}',
        "the input length exceeds the context length",
    ],
)
def test_a_question_longer_than_the_context_is_named(
    asking: Any, answering: Any, said: str
) -> None:
    answering.refuses = lambda body: said if len(body["messages"][-1]["content"]) > 15 else None
    questions = [Question(BASE, "mine", item) for item in items(4)]
    with pytest.raises(OllamaRefused, match=r"Problem '3' of eval\.sets\.mine") as caught:
        list(asking().answers(questions))
    assert "base small:1b" in caught.value.message
    assert "99 tokens" in caught.value.message or "input length" in caught.value.message
    assert caught.value.param == "eval.num_ctx"
    assert "eval.num_ctx" in str(caught.value.hint)


def test_another_refusal_comes_through_as_it_is(asking: Any, answering: Any) -> None:
    answering.refuses = lambda _: "model is broken"
    with pytest.raises(OllamaRefused, match="model is broken") as caught:
        list(asking().answers([Question(BASE, "mine", items(1)[0])]))
    assert caught.value.param is None


def test_a_stop_request_ends_between_two_questions(asking: Any, answering: Any, heard: Any) -> None:
    answers = asking().answers([Question(BASE, "s", item) for item in items(9)])
    next(answers)
    heard.emit.request_stop()
    with pytest.raises(Stopped):
        list(answers)
    assert len(answering.asked) <= 3


@pytest.mark.redis
def test_a_killed_run_goes_on_without_asking_again(
    answering: Any, tiny: JobSpec, stage_adapters: Path, tmp_path: Path
) -> None:
    """kill -9 of the stage program mid-way; then another job, which finds the base's answers."""
    problems = [
        {"id": f"p{n}", "question": f"What is {n} + 7?", "answer": n + 7} for n in range(15)
    ]
    text = "".join(json.dumps(p) + "\n" for p in problems)
    (stage_adapters / "math/eval_dataset.jsonl").write_text(text)
    answering.models = {"smollm2:135m": "b", "locollm-math:j1": "c1", "locollm-math:j2": "c2"}
    answering.seconds = 0.1

    def start(candidate: str, out: str) -> subprocess.Popen[bytes]:
        spec = {**tiny.eval.model_dump(mode="json"), "parallel": 2, "baselines": ["base"]}
        spec["sets"] = {"benchmark": spec["sets"]["benchmark"]}
        inputs = Inputs(
            job_id="j",
            adapter="math",
            adapter_dir=stage_adapters / "math",
            models_dir=tmp_path,
            locks_dir=tmp_path,
            ollama_host=answering.url,
            answers_dir=tmp_path / "answers",
            results={Stage.REGISTER: {"candidate": candidate}},
        )
        file = tmp_path / f"{out}.json"
        EvalSpec.model_validate(spec)
        file.write_text(StageRun(stage=Stage.EVAL, spec=spec, inputs=inputs).model_dump_json())
        command = [sys.executable, "-m", "loco_worker.eval", "--spec", str(file)]
        return subprocess.Popen([*command, "--out", str(tmp_path / out)], stdout=subprocess.DEVNULL)

    def result(out: str) -> EvalResult:
        return EvalResult.model_validate_json((tmp_path / out / "result.json").read_bytes())

    killed = start("locollm-math:j1", "a")
    while len(answering.asked) < 19:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert start("locollm-math:j1", "b").wait(60) == 0
    asked = len(answering.asked)
    assert 30 <= asked <= 30 + 2 * 2, "only what was under way is asked again"
    [compared] = result("b").comparisons
    assert compared.base.cached == 15
    assert compared.candidate.cached >= 2

    assert start("locollm-math:j2", "c").wait(60) == 0
    assert [model for model, _, _ in answering.asked[asked:]] == ["locollm-math:j2"] * 15
    assert result("c").comparisons[0].base.cached == 15
