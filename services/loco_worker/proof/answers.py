"""What the served model answers, greedily, against the exported GGUF run directly."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from math import ceil

from loco.contracts.serving import ReferencePrompt, ServingReference
from loco.serving.host import Answer, OllamaHost
from loco_worker.proof.findings import Findings, Subject, quoted, shared_start

GREEDY = {"temperature": 0, "seed": 0}

#: Of the answers so many are the same text. Other kernels, and a prompt evaluated in other pieces, sum
#: in another order, so that two tokens about as likely change places: measured on the short arithmetic
#: of `tiny`, 20 of 24 answers were the same, and none of its base's (docs/deployment-proof.md).
SAME_SHARE = 1 / 3
#: The others begin the same, for so much of the longer one: those 4 parted after 28 to 38 %, the base's
#: at once (one of 24 after 28 %).
BEGINNING = 0.25
#: So many may do otherwise, and one at least where there are several.
OTHERWISE_SHARE = 0.25

_FIX = (
    "The served weights are not the exported ones, or the server computes otherwise: compare "
    "`ollama run` with the answers in export/serving_reference.json; run stages export,register again."
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
        limit = reference.num_predict if answered else 1
        options = {**GREEDY, "num_predict": limit}
        answer = host.converse(subject.model, prompt.messages, options, think=think)
        yield Asked(prompt, think, answer)


def probe(host: OllamaHost, subject: Subject, findings: Findings) -> Answer:
    """The recipe's own prompt gets an answer that ends within the recipe's limit."""
    answer = host.chat(subject.model, subject.probe, GREEDY)
    limit = subject.parameters.get("num_predict")
    ended = answer.done_reason == "stop"
    said = bool(answer.text.strip())
    how = "" if ended else f", does not end within {limit} tokens ({answer.done_reason})"
    findings.add(
        "probe",
        ended and said,
        expected=f"an answer to {subject.probe!r} that ends within {limit} tokens",
        seen=f"{quoted(answer.text) if said else 'nothing'}{how}",
        fix="Raise register.num_predict, or look at the training: it forgot to stop, or ran too hot.",
    )
    return answer


def ends_with_stop(asked: list[Asked], findings: Findings) -> None:
    """What ended when the GGUF ran directly ends here too."""
    ended = [a for a in asked if a.prompt.answer is not None and a.prompt.ended]
    if not ended:
        findings.warnings.append(
            "No answer of the exported GGUF ended within its limit, so that answers end was seen "
            "of the probe only."
        )
        return
    stopped = [a for a in ended if a.answer.done_reason == "stop"]
    # the same text without its end is no near tie
    cut = [a for a in ended if a not in stopped and _text(a) == _expected(a)]
    needed = _most_of(len(ended))
    others = ", ".join(
        f"{a.prompt.name} ({a.answer.done_reason})" for a in ended if a not in stopped
    )
    findings.add(
        "ends_with_stop",
        len(stopped) >= needed and not cut,
        expected=f"at least {needed} of the {len(ended)} answers that ended in the reference",
        seen=f"{len(stopped)} ended{f'; not {others}' if others else ''}",
        fix="A stop string is missing, or the end token is not the training's. " + _FIX,
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
        fix="The chat template lets the client turn thinking on: run stages export,register again.",
    )


def greedy_answers(asked: list[Asked], findings: Findings) -> None:
    """The served answers are those of the exported GGUF, but for near ties."""
    compared = [a for a in asked if a.prompt.answer is not None]
    if not compared:
        findings.warnings.append("The reference holds no answers of the exported GGUF to compare.")
        return
    same = [a for a in compared if _text(a) == _expected(a)]
    others = [a for a in compared if a not in same]
    near = [a for a in others if _begins_the_same(_expected(a), _text(a))]
    needed_same, needed = ceil(SAME_SHARE * len(compared)), _most_of(len(compared))
    apart = [
        f"{a.prompt.name}: {quoted(_text(a))} instead of {quoted(_expected(a))}" for a in others
    ]
    findings.add(
        "greedy_answers",
        len(same) >= needed_same and len(same) + len(near) >= needed,
        expected=f"of {len(compared)} answers {needed_same} the same text as the exported GGUF's run "
        f"directly, and {needed} the same or its first quarter",
        seen="; ".join([f"{len(same)} the same, {len(near)} begin the same", *apart[:3]]),
        fix=_FIX,
    )


def _begins_the_same(a: str, b: str) -> bool:
    return shared_start(a, b) >= BEGINNING * max(len(a), len(b))


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


def _most_of(count: int) -> int:
    """How many of so many answers have to be as expected."""
    return count - max(int(OTHERWISE_SHARE * count), 1 if count > 1 else 0)
