"""What the served model answers, greedily, against the exported GGUF run directly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

from loco.contracts.serving import PLAIN, PROBE, ReferencePrompt, ServingReference
from loco.serving.host import Answer, OllamaHost
from loco.serving.shown import quoted, shared_start
from loco_worker.proof.findings import Findings, Subject

GREEDY = {"temperature": 0, "seed": 0}

#: Characters of an answer that are compared, about 64 tokens: in long ones near ties add up.
COMPARED = 200
#: So much of the longer text the answers share from the start, on average. Other kernels, and a prompt
#: evaluated in other pieces, sum in another order, so that two tokens about as likely change places:
#: measured on the short arithmetic of `tiny`, 51 of 60 answers were the same and 9 parted after 28 to
#: 38 %, 90 % on average; its base's were 4 %. Of a model that had learnt wrong answers, for which many
#: numbers are about as likely, two of six parted at once: 67 % (docs/deployment-proof.md).
SHARED = 1 / 3

#: So many questions of the job's rows are asked at most until an answer ends. A weak model may run on at
#: one of them; one that did not learn to stop runs on at each.
PROBES = 3

_FIX = (
    "Ollama serves other weights than the exported ones, or computes differently. Compare "
    "`ollama run` with the answers in export/serving_reference.json, and run stages "
    "export,register again."
)


@dataclass(frozen=True)
class Asked:
    """A prompt of the reference and what the server said to it."""

    prompt: ReferencePrompt
    think: bool | None
    answer: Answer


def ask(
    host: OllamaHost,
    subject: Subject,
    reference: ServingReference,
    thinks: tuple[bool | None, ...],
) -> Iterator[Asked]:
    """Asks every prompt once, the values of `think` in turn: all are to give the same prompt.

    A prompt whose answer the reference has not is asked for its token count only.
    """
    compared, counted = cycle(thinks), cycle(thinks)
    for prompt in reference.prompts:
        answered = prompt.answer is not None
        think = next(compared if answered else counted)
        limit = (prompt.num_predict or reference.num_predict) if answered else 1
        options = {**GREEDY, "num_predict": limit}
        answer = host.converse(subject.model, prompt.messages, options, think=think)
        yield Asked(prompt, think, answer)


@dataclass(frozen=True)
class Probed:
    """The last question of the probe, and the server's answer."""

    question: str
    answer: Answer


def probe(
    host: OllamaHost,
    subject: Subject,
    reference: ServingReference | None,
    findings: Findings,
    check_stop: Callable[[], None],
) -> Probed:
    """The recipe's prompt, or else one of some questions, gets an answer that ends within the limit."""
    questions = _probes(subject, reference)
    faults: list[str] = []
    for messages in questions:
        check_stop()
        probed = Probed(messages[-1]["content"], host.converse(subject.model, messages, GREEDY))
        fault = _fault(probed.answer)
        if fault is None:
            faults.clear()
            break
        faults.append(f"{quoted(probed.question)}: {fault}")
    what = quoted(probed.question) if len(questions) == 1 else f"one of {len(questions)} questions"
    findings.add(
        "probe",
        not faults,
        expected=f"an answer to {what} that ends within {subject.parameters['num_predict']} tokens",
        seen="; ".join(faults) or f"{quoted(probed.question)}: {quoted(probed.answer.text)}",
        fix="Raise register.num_predict, or register.num_ctx where the question is long, or check the "
        "training: the model did not learn to stop, or the learning rate was too high.",
    )
    return probed


def _fault(answer: Answer) -> str | None:
    """What is wrong with an answer to a probe."""
    said = quoted(answer.text) if answer.text.strip() else "nothing"
    if answer.done_reason != "stop":
        return f"{said}, does not end after {answer.tokens} tokens ({answer.done_reason})"
    return None if answer.text.strip() else said


def _probes(
    subject: Subject, reference: ServingReference | None
) -> list[tuple[dict[str, str], ...]]:
    """Conversations of which one has to get an answer that ends.

    A model trained on one form of question may not end its answer to another, so the job's own rows come
    first, those before others that the exported GGUF itself ended. A sum comes last: answers to the rows
    may be longer than the limit.
    """
    if subject.probe:
        return [({"role": "user", "content": subject.probe},)]
    prompts = reference.prompts if reference else ()
    rows = [p for p in prompts if p.name != PLAIN and p.answer is not None]
    rows.sort(key=lambda row: not (row.ended and (row.answer or "").strip()))
    return [*(row.messages for row in rows[:PROBES]), ({"role": "user", "content": PROBE},)]


def ends_with_stop(asked: list[Asked], findings: Findings) -> None:
    """What ended when the GGUF ran directly ends here too."""
    ended = [a for a in asked if a.prompt.answer is not None and a.prompt.ended]
    rows = _of_rows(asked)
    if rows and not any(a.prompt.ended for a in rows):
        limit = max(a.prompt.num_predict or a.prompt.answer_tokens for a in rows)
        findings.warnings.append(
            f"The exported model itself does not end its answers: none of {len(rows)} to "
            f"validation questions ended within {limit} tokens. It serves as exported, and eval "
            "counts such answers as `unfinished`. Train with answers that end, or raise "
            "register.num_predict if they are longer."
        )
    if not ended:
        findings.warnings.append(
            "No answer of the exported GGUF ended within its limit, so only the probe shows "
            "that answers end."
        )
        return
    stopped = [a for a in ended if a.answer.done_reason == "stop"]
    # the same text without its end is no near tie
    cut = [a for a in ended if a not in stopped and _text(a) == _expected(a)]
    # those that part at a near tie may run on; where an end is lost none ends
    needed = (len(ended) + 1) // 2
    others = ", ".join(
        f"{a.prompt.name} ({a.answer.done_reason})" for a in ended if a not in stopped
    )
    findings.add(
        "ends_with_stop",
        len(stopped) >= needed and not cut,
        expected=f"at least {needed} of the {len(ended)} answers that ended in the reference",
        seen=f"{len(stopped)} ended{f'; not {others}' if others else ''}",
        fix="A stop string is missing, or the end token differs from training. " + _FIX,
    )


def no_thinking(asked: list[Asked], probed: Answer, findings: Findings) -> None:
    """No answer thinks, whatever the client sends for `think`, unless the training thought."""
    answers = [(a.prompt.name, a.answer) for a in asked if not _thinks_by_training(a.prompt)]
    if len(answers) == len(asked):
        answers.insert(0, ("probe", probed))
    faults = [
        f"{name}: {quoted(answer.thinking or answer.text)}"
        for name, answer in answers
        if answer.thinking or "<think>" in answer.text
    ]
    findings.add(
        "no_thinking",
        not faults,
        expected=f"{len(answers)} answers without thoughts",
        seen="; ".join(faults[:3]) or "none thinks",
        fix="The chat template lets the client turn thinking on. Run stages export,register again.",
    )


def greedy_answers(asked: list[Asked], findings: Findings) -> None:
    """The served answers are those of the exported GGUF, but for near ties.

    Those to validation rows: to `plain` base and adapter say the same.
    """
    compared = _of_rows(asked)
    if not compared:
        findings.warnings.append(
            "The reference has no answers of the exported GGUF to validation questions, so the "
            "answers would not show if the base served in its place."
        )
        compared = [a for a in asked if a.prompt.answer is not None]
    if not compared:
        return
    shares = [_shared(_expected(a), _text(a)) for a in compared]
    average = sum(shares) / len(shares)
    apart = [
        f"{a.prompt.name}: {quoted(_text(a))} instead of {quoted(_expected(a))}"
        for a, share in zip(compared, shares, strict=True)
        if share < 1
    ]
    same = len(compared) - len(apart)
    findings.add(
        "greedy_answers",
        average >= SHARED,
        expected=f"of {len(compared)} answers {SHARED:.0%} of the text on average as the "
        "exported GGUF's run directly, from the start",
        seen="; ".join([f"{same} the same, {average:.0%} on average", *apart[:3]]),
        fix=_FIX,
    )


def _of_rows(asked: list[Asked]) -> list[Asked]:
    """Answers to what the adapter was trained for."""
    return [a for a in asked if a.prompt.answer is not None and a.prompt.name != PLAIN]


def _shared(a: str, b: str) -> float:
    """How much of the longer of two texts they share from their start; 1: they are the same."""
    a, b = a[:COMPARED], b[:COMPARED]
    return shared_start(a, b) / max(len(a), len(b)) if a != b else 1.0


def _thinks_by_training(prompt: ReferencePrompt) -> bool:
    """Whether the exported GGUF thinks here: the training had it do so."""
    opened = prompt.rendered.rstrip().endswith("<think>")
    return opened or "<think>" in (prompt.answer or "")


def _expected(asked: Asked) -> str:
    return _plain(asked.prompt.answer or "")


def _text(asked: Asked) -> str:
    return _plain(f"{asked.answer.thinking} {asked.answer.text}")


def _plain(text: str) -> str:
    """Text without what servers treat in different ways: space, and the tags around thoughts."""
    return " ".join(text.replace("<think>", " ").replace("</think>", " ").split())
