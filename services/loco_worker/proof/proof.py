"""All checks of a served candidate, in order; each is made even where another failed.

The names of the checks are part of the API: `listed digest_new template parameters capabilities
context_length reference tensors vocabulary rendered_prompt probe prompt_tokens ends_with_stop
no_thinking greedy_answers`, and `exported adapters created` of stage register before there is a candidate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from loco.contracts.errors import OllamaRefused
from loco.contracts.ollama_versions import hole_warning
from loco.contracts.serving import REFERENCE, ServingReference
from loco.serving.host import OllamaHost
from loco.stage.program import Emitter
from loco_worker.proof import answers, prompts, stored
from loco_worker.proof.findings import Findings, Subject

#: A failed check of this name does not end the stage: the job is from before there was a reference.
REFERENCE_CHECK = "reference"


class Served(NamedTuple):
    """The model as the server has it; None: it did not get so far."""

    digest: str | None
    #: The last question of the probe, and the answer.
    probed: answers.Probed | None


def prove(
    host: OllamaHost,
    subject: Subject,
    reference: ServingReference | None,
    findings: Findings,
    emit: Emitter,
) -> Served:
    """Checks a candidate.

    Args:
        host: where it serves.
        subject: what was sent there.
        reference: what export saw of the model; None: the job was exported without.
        findings: where the checks go.
        emit: of the stage.

    Raises:
        OllamaUnavailable: the server is gone.
        Stopped: a stop was asked for.
    """
    version = host.version()
    if known := hole_warning(version):
        findings.warnings.append(" ".join(known))
    models = host.digests()
    if not stored.listed(models, subject, findings):
        return Served(None, None)
    steps = _Steps(subject.model, findings, emit)
    shown: stored.Shown = {}
    with steps.make("template", 75):
        shown = host.show(subject.model, verbose=True)
        stored.template(shown, reference, findings)
        stored.parameters(shown, subject, findings)
        stored.capabilities(shown, reference, findings)
        stored.context_length(shown, subject, reference, findings)
    with steps.make("digest_new", 76):
        stored.digest_new(host, models, shown, subject, findings)
    _reference(reference, findings)
    if reference is not None:
        with steps.make("tensors", 77):
            stored.tensors(shown, reference, findings)
            stored.vocabulary(shown, reference, findings)
        with steps.make("rendered_prompt", 78):
            prompts.rendered_prompt(host, shown, subject, reference, findings)
    probed: answers.Probed | None = None
    asked: list[answers.Asked] = []
    with steps.make("probe", 82):
        probed = answers.probe(host, subject, reference, findings, emit.check_stop)
    if reference is not None:
        with steps.make("greedy_answers", 84):
            for one in answers.ask(host, subject, reference, prompts.thinks_asked(shown)):
                asked.append(one)
                steps.answered(len(asked), len(reference.prompts))
    if reference is not None and len(asked) == len(reference.prompts):
        prompts.prompt_tokens(version, asked, findings)
        answers.ends_with_stop(asked, findings)
        answers.greedy_answers(asked, findings)
    if probed is not None:
        answers.no_thinking(asked, probed.answer, findings)
    return Served(models[subject.model], probed)


def _reference(reference: ServingReference | None, findings: Findings) -> None:
    there = reference is not None
    findings.add(
        REFERENCE_CHECK,
        there,
        expected=f"export/{REFERENCE}, which export writes",
        seen="there" if there else "none: the job was exported by an earlier release",
        fix="Run stages export,register again: `loco submit ADAPTER --from-job JOB --stages "
        "export,register,eval`.",
    )
    if not there:
        findings.warnings.append(
            "Not proven: without export's reference, the served prompts, tokens and answers "
            "were not compared with those of training. Run stages export,register again."
        )


class _Steps:
    """Says what is checked; a server that refuses fails the check and not the others."""

    def __init__(self, model: str, findings: Findings, emit: Emitter) -> None:
        self._model = model
        self._findings = findings
        self._emit = emit

    @contextmanager
    def make(self, name: str, percent: float) -> Iterator[None]:
        self._emit.check_stop()
        self._emit.progress(message=f"checking {self._model}: {name}", percent=percent, last=True)
        try:
            yield
        except OllamaRefused as error:
            self._findings.add(
                name,
                False,
                expected="an answer of the server",
                seen=error.message,
                fix="The server's own log says more. A GGUF does not load if it is damaged or "
                "needs too much memory.",
            )

    def answered(self, done: int, total: int) -> None:
        """Counts answers as they come."""
        self._emit.check_stop()
        self._emit.progress(
            message=f"checking {self._model}: answer {done} of {total}",
            percent=round(84 + 14 * done / total, 1),
        )
