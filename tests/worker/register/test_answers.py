"""What counts as the same answers, the same endings and no thoughts, without a server."""

from typing import Any

import pytest

from loco.contracts.serving import Check, ReferencePrompt, ServingReference
from loco.serving.host import Answer
from loco_worker.proof import answers
from loco_worker.proof.findings import Findings, Subject

EXPECTED = "37 - 15 = 22\nThe answer is 22"
BEGINS = "37 - 15 is twenty-two."
OTHER = "To solve it we subtract."
LONG = "Ann has 3 boxes of 4 pens, 12 in all. " * 12


def asked(
    name: str,
    expected: str = EXPECTED,
    text: str | None = None,
    *,
    ended: bool = True,
    reason: str = "stop",
    thinking: str = "",
    rendered: str = "<|im_start|>assistant\n",
) -> answers.Asked:
    """An answer of the reference, and that of the server, the same unless given."""
    prompt = ReferencePrompt(
        name=name,
        messages=({"role": "user", "content": "?"},),
        rendered=rendered,
        tokens=9,
        answer=expected,
        num_predict=128,
        ended=ended,
    )
    said = expected if text is None else text
    return answers.Asked(prompt, None, Answer(said, thinking, reason, 9, 9, 0.1))


def rows(*texts: str) -> list[answers.Asked]:
    """`plain` answered the same, and validation rows as given."""
    return [
        asked("plain", "2 + 2 = 4."),
        *(asked(f"validation-{n}", text=text) for n, text in enumerate(texts, 1)),
    ]


@pytest.mark.parametrize(
    ("texts", "passed"),
    [
        # `plain`, which the base answers alike, and one that begins alike
        ((BEGINS, OTHER), False),
        ((EXPECTED,) * 6, True),
        # measured of a good model: near ties
        ((EXPECTED,) * 3 + (BEGINS,) * 3, True),
        ((EXPECTED,) * 4 + (BEGINS, OTHER), True),
        # measured of a model that had learnt wrong answers, and one worse
        ((EXPECTED,) * 4 + (OTHER,) * 2, True),
        ((EXPECTED,) * 3 + (OTHER,) * 3, True),
        # measured of bases, and of some that are nearer to the trained model
        ((OTHER,) * 5 + (BEGINS,), False),
        ((BEGINS,) * 6, False),
        ((EXPECTED,) + (OTHER,) * 5, False),
    ],
)
def test_greedy_answers(texts: tuple[str, ...], passed: bool) -> None:
    findings = Findings()
    answers.greedy_answers(rows(*texts), findings)
    [check] = findings.checks
    assert check.passed is passed, check
    assert findings.warnings == []


def test_only_the_beginning_of_a_long_answer_is_compared() -> None:
    findings = Findings()
    late = LONG[:300] + "And so on."
    answers.greedy_answers([asked(f"validation-{n}", LONG, late) for n in range(3)], findings)
    assert findings.checks[0].passed
    assert findings.checks[0].seen.startswith("3 the same")


def test_a_reference_without_answers_to_rows_is_a_warning() -> None:
    findings = Findings()
    answers.greedy_answers(rows(), findings)
    assert findings.checks[0].passed
    [warning] = findings.warnings
    assert "the answers would not show if the base served in its place" in warning


def test_a_long_answer_that_ended_in_the_reference_has_to_end() -> None:
    findings = Findings()
    answers.ends_with_stop([asked("plain"), asked("validation-1", reason="length")], findings)
    [check] = findings.checks
    assert not check.passed
    assert "not validation-1 (length)" in check.seen


def test_an_exported_model_that_does_not_end_is_a_warning() -> None:
    findings = Findings()
    endless = [asked(f"validation-{n}", ended=False, reason="length") for n in (1, 2)]
    answers.ends_with_stop([asked("plain"), *endless], findings)
    assert findings.checks[0].passed
    [warning] = findings.warnings
    assert warning.startswith("The exported model itself does not end its answers: none of 2")
    assert "within 128 tokens" in warning
    findings = Findings()
    answers.ends_with_stop([*endless, asked("validation-3")], findings)
    assert findings.warnings == []


ENDS, CUT, EMPTY = ("It is 22", "stop"), ("It is 2", "length"), (" ", "stop")


class Host:
    """A server that gives such answers, one after the other, and keeps what it was asked."""

    def __init__(self, *said: tuple[str, str]) -> None:
        self.said = list(said)
        self.asked: list[str] = []

    def converse(self, _: str, messages: Any, __: Any) -> Answer:
        self.asked.append(messages[-1]["content"])
        text, reason = self.said.pop(0)
        return Answer(text, "", reason, 9, 9, 0.1)


def reference_of(*prompts: answers.Asked) -> ServingReference:
    told = {
        p.prompt.name: p.prompt.model_copy(
            update={"messages": ({"role": "user", "content": f"{p.prompt.name}?"},)}
        )
        for p in prompts
    }
    return ServingReference(
        prompts=tuple(told.values()),
        num_predict=64,
        chat_template_sha256="",
        architecture="llama",
        context_length=2048,
        parameter_count=1,
        tensors={},
        vocabulary=1,
        vocabulary_sha256="",
        thinks=False,
    )


def subject_with(probe: str | None) -> Subject:
    return Subject(
        model="units:1",
        blob="sha256:0",
        size=1,
        system=None,
        parameters={"num_predict": 128},
        probe=probe,
        base="base",
        served_base=None,
        promoted=None,
    )


SUM = "What is 2 + 2?"
REFERENCE = reference_of(
    asked("plain"),
    asked("validation-1", ended=False),
    asked("validation-2", expected=" "),
    *(asked(f"validation-{n}") for n in (3, 4)),
)
ROWS = ["validation-3?", "validation-4?", "validation-1?"]


def probed(
    host: Host, probe: str | None = None, reference: ServingReference | None = REFERENCE
) -> tuple[answers.Probed, Check]:
    findings, looks = Findings(), []
    subject = subject_with(probe)
    found = answers.probe(host, subject, reference, findings, lambda: looks.append(1))  # type: ignore[arg-type]
    assert len(looks) == len(host.asked), "a stop is seen before each question"
    [check] = findings.checks
    return found, check


@pytest.mark.parametrize("said", [[ENDS], [CUT, CUT, ENDS], [EMPTY, CUT, CUT, ENDS]])
def test_one_answer_that_ends_is_enough(said: list[tuple[str, str]]) -> None:
    """A weak model runs on now and then; one that can't stop does so each time."""
    host = Host(*said)
    found, check = probed(host)
    assert check.passed, check
    assert host.asked == [*ROWS, SUM][: len(said)]
    assert check.seen == f"'{host.asked[-1]}': 'It is 22'"
    assert (found.question, found.answer.text) == (host.asked[-1], "It is 22")


@pytest.mark.parametrize("last", [CUT, EMPTY])
def test_a_model_that_never_ends_an_answer_is_refused(last: tuple[str, str]) -> None:
    host = Host(CUT, EMPTY, CUT, last)
    _, check = probed(host)
    assert not check.passed
    assert host.asked == [*ROWS, SUM]
    assert check.expected == "an answer to one of 4 questions that ends within 128 tokens"
    cut = "'It is 2', does not end after 9 tokens (length)"
    told = [cut, "nothing", cut, cut if last is CUT else "nothing"]
    assert check.seen == "; ".join(f"'{q}': {t}" for q, t in zip(host.asked, told, strict=True))


@pytest.mark.parametrize("said", [CUT, EMPTY])
def test_the_recipe_s_own_probe_is_the_only_one(said: tuple[str, str]) -> None:
    host = Host(said)
    _, check = probed(host, "2 + 2?")
    assert host.asked == ["2 + 2?"]
    assert not check.passed
    assert check.expected == "an answer to '2 + 2?' that ends within 128 tokens"
    host = Host(ENDS)
    probed(host, "")
    assert host.asked == ROWS[:1], "an empty probe is none"


def test_without_answers_to_rows_a_sum_is_asked() -> None:
    unasked = asked("validation-1")
    unasked = answers.Asked(
        unasked.prompt.model_copy(update={"answer": None}), None, unasked.answer
    )
    for reference in (None, reference_of(asked("plain"), unasked)):
        host = Host(ENDS)
        probed(host, reference=reference)
        assert host.asked == [SUM]


@pytest.mark.parametrize(
    "trained",
    [
        asked("validation-1", rendered="<|im_start|>assistant\n<think>\n", thinking="37 less 15"),
        asked("validation-1", f"<think>37 less 15</think>{EXPECTED}", EXPECTED, thinking="37 less"),
    ],
)
def test_thoughts_of_the_training_are_let_pass(trained: answers.Asked) -> None:
    probed = Answer("4", "2 and 2", "stop", 9, 9, 0.1)
    findings = Findings()
    answers.no_thinking([trained], probed, findings)
    assert findings.checks[0].passed
    answers.no_thinking([asked("validation-1", thinking="37 less 15")], probed, findings)
    assert not findings.checks[1].passed
    assert findings.checks[1].seen.startswith("probe: '2 and 2'; validation-1: '37 less 15'")
