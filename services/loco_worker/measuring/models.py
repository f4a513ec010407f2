"""Who is measured: the candidate and what it is compared with."""

from typing import NamedTuple

from loco.contracts.errors import RegistrationFailed
from loco.contracts.evaluation import Baseline
from loco.contracts.specs import EvalSpec, Inputs
from loco.contracts.stages import Stage
from loco.contracts.versions import PromotedVersion
from loco.serving.host import OllamaHost, full_name
from loco.stage.program import Emitter
from loco_worker.ollama.bases import fetch_base

CANDIDATE = "candidate"


class Contestant(NamedTuple):
    """A model that answers the questions."""

    #: `candidate`, or the name of a baseline.
    role: str
    model: str
    #: Of the model in Ollama.
    digest: str
    #: A system prompt it is given.
    system: str | None = None


class Contest(NamedTuple):
    """All that are measured."""

    #: Those of one model stand together.
    contestants: tuple[Contestant, ...]
    #: Baselines that can't be measured, and why.
    left_out: dict[Baseline, str]


def contest(spec: EvalSpec, inputs: Inputs, host: OllamaHost, emit: Emitter) -> Contest:
    """The candidate, and each baseline that the spec names and that can be had.

    Raises:
        RegistrationFailed: the candidate is not there, or is not what was registered.
        OllamaRefused: the base model can't be had.
    """
    registered = inputs.results.get(Stage.REGISTER, {})
    models = host.digests()
    candidate = _candidate(inputs, models, host)
    base = full_name(spec.base_model.ollama)
    if {Baseline.BASE, Baseline.INSTRUCTED} & set(spec.baselines) and base not in models:
        fetch_base(host, spec.base_model, emit)
        models = host.digests()
    found: list[Contestant] = []
    left_out: dict[Baseline, str] = {}
    for baseline in Baseline:
        if baseline not in spec.baselines:
            continue
        if baseline is Baseline.BASE:
            known = Contestant(baseline, base, models.get(base, ""))
        elif baseline is Baseline.INSTRUCTED:
            known = Contestant(baseline, base, models.get(base, ""), spec.instruction)
        elif baseline is Baseline.EXPORTED:
            name = str(registered.get("exported_base") or "")
            known = Contestant(baseline, name, models.get(name, ""))
        else:
            name = _serving(inputs.promoted, models) if inputs.promoted else ""
            known = Contestant(baseline, name, models.get(name, ""))
        why = _why_not(known, spec, inputs, candidate)
        if why is None:
            found.append(known)
        else:
            left_out[baseline] = why
    # the candidate before what is seldom asked: it is what a person waits for
    of_base = [c for c in found if c.model == base]
    return Contest((*of_base, candidate, *(c for c in found if c.model != base)), left_out)


def _candidate(inputs: Inputs, models: dict[str, str], host: OllamaHost) -> Contestant:
    registered = inputs.results.get(Stage.REGISTER, {})
    name = registered.get("candidate")
    if not name:
        raise RegistrationFailed(
            "There is no candidate to measure: stage register of the job has not finished.",
            hint="Run stage register in the same job, or name a job with one in from_job.",
        )
    version = inputs.candidate
    again = (
        f"`loco setup {inputs.adapter} --version {version.version}` creates it again."
        if version
        else "Run stage register again."
    )
    if name not in models:
        raise RegistrationFailed(
            f"Ollama at {host.url} has no {name}.",
            hint=f"Somebody deleted it, or OLLAMA_HOST changed. {again}",
        )
    expected = version.digest if version else registered.get("digest")
    if expected and models[name] != expected:
        raise RegistrationFailed(
            f"{name} in Ollama is not the registered model: its digest is {models[name][:19]}, "
            f"not {expected[:19]}.",
            hint=f"Somebody created another model with that name. {again}",
        )
    return Contestant(CANDIDATE, name, models[name])


def _serving(promoted: PromotedVersion, models: dict[str, str]) -> str:
    """The name of what serves: the version's own, or `MODEL:latest` where only that is it still."""
    latest = f"{promoted.candidate.partition(':')[0]}:latest"
    if models.get(promoted.candidate) != promoted.digest == models.get(latest):
        return latest
    return promoted.candidate


def _why_not(
    known: Contestant, spec: EvalSpec, inputs: Inputs, candidate: Contestant
) -> str | None:
    """Why a baseline can't be measured; None: it can."""
    if known.role == Baseline.INSTRUCTED and not spec.instruction:
        return "the recipe has no eval.instruction"
    if known.role == Baseline.EXPORTED and not known.model:
        return "the base was not exported: set export.base"
    if known.role == Baseline.PROMOTED:
        if inputs.promoted is None:
            return "no other version serves yet"
        if known.digest and known.digest != inputs.promoted.digest:
            return f"{known.model} in Ollama is not the promoted model: its digest differs"
        if known.model == candidate.model:
            return "it is the candidate itself"
    return None if known.digest else f"{known.model} is no longer in Ollama"
