"""Source `self`, from the base model in Ollama to the rows of stage prepare."""

from pathlib import Path
from typing import Any, NamedTuple

from loco.contracts.errors import DataError, InvalidRequest, LocoError
from loco.contracts.results import Sampling
from loco.contracts.sources import SelfSource
from loco.contracts.specs import Inputs, PrepareSpec
from loco.serving.host import OllamaHost
from loco.stage.program import Emitter
from loco_worker.asking.answers import AnswerStore
from loco_worker.ollama.bases import served_base
from loco_worker.sampling.collecting import Collecting, Collection, Taken
from loco_worker.sampling.progress import Progress
from loco_worker.sampling.questions import Questions
from loco_worker.sampling.report import in_words, sample_lines, sampling_of
from loco_worker.sampling.samples import Sampler, Served, options
from loco_worker.sampling.texts import Turns, closed, conversation
from loco_worker.sources.held_back import Held
from loco_worker.sources.sieve import Sieve
from loco_worker.sources.sources import open_source


class OwnAnswers(NamedTuple):
    """What source self gives."""

    #: The source in words.
    description: str
    rows: list[Turns]
    validation: list[Turns]
    #: Lines of preference_data.jsonl.
    pairs: list[dict[str, Any]]
    #: Lines of samples.jsonl.
    samples: list[dict[str, Any]]
    sampling: Sampling
    #: Questions held back to measure with; None: that is not asked for.
    held: Held | None


def own_answers(
    spec: PrepareSpec, inputs: Inputs, sieve: Sieve, out_dir: Path, emit: Emitter
) -> OwnAnswers:
    """Asks the base, checks and chooses.

    Raises:
        DataError: no question is usable, or no row came of them; says what to take instead.
        InvalidRequest: the spec names no base model.
        OllamaUnavailable: no server answers (retried later; what was answered is kept).
        OllamaRefused: it answers with an error, or the base can't be had.
        SourceUnreachable, SandboxUnavailable: see `open_source`, `Questions`.
    """
    source = spec.source
    assert isinstance(source, SelfSource)
    if spec.base_model is None:
        raise InvalidRequest(
            "Source self asks a base model, and prepare.base_model names none.",
            param="prepare.base_model",
            hint="In a recipe it follows from base_model. A spec written by hand must contain it.",
        )
    records = open_source(
        source.questions, inputs, spec.seed, questions=True, between=emit.check_stop
    )
    questions = Questions(records, sieve, spec, emit)
    with OllamaHost(inputs.ollama_host) as host:
        model, digest = served_base(host, spec.base_model, emit)
        served = Served(model, digest, host.version(), source.instruction, spec.seed)
        store = AnswerStore(
            inputs.answers_dir or out_dir / "answers",
            server_version=served.server_version,
            options=options(source),
        )
        store.prune(digest)
        progress = Progress(spec, source.pairs, emit)
        sampler = Sampler(host, served, source, store, emit=emit, heard=progress.heard)
        try:
            collecting = Collecting(questions, sampler, spec, source, emit=emit, progress=progress)
            collection = collecting.run()
        finally:
            # whatever came of it, and if all was known: an attempt before this one may have been cut
            _unload(host, model, emit)
    sampling = sampling_of(served, questions.description, collection, sampler.counts)
    _say(spec, source, collection, sampling, emit)
    description = f"own answers of {model} ({digest[:12]}) to {questions.description}"
    if not collection.rows:
        raise _nothing(description, sieve, sampling)
    instruction = source.instruction if source.train_instruction else None
    return OwnAnswers(
        description,
        [_turns(taken, instruction) for taken in collection.rows],
        [_turns(taken, instruction) for taken in collection.validation],
        collection.pairs,
        list(sample_lines(collection)),
        sampling,
        questions.held,
    )


def _turns(taken: Taken, instruction: str | None) -> Turns:
    row = taken.asked.row
    if taken.answer is None:
        return conversation(row, row.conversations[-1]["content"], instruction)
    return conversation(row, closed(taken.asked.item, taken.answer.text), instruction)


def _unload(host: OllamaHost, model: str, emit: Emitter) -> None:
    """A trainer on the same small GPU needs the memory that the base takes there."""
    try:
        host.unload(model)
    except LocoError as error:
        emit.log(f"{model} stays in Ollama's memory: {error.message}")


def _say(
    spec: PrepareSpec,
    source: SelfSource,
    collection: Collection,
    sampling: Sampling,
    emit: Emitter,
) -> None:
    emit.log(in_words(sampling))
    if sampling.known:
        emit.log(f"{sampling.known} of {sampling.asked} answers were reused from earlier runs")
    too_long = sum(asked.too_long for asked in collection.asked)
    if too_long:
        emit.log(
            f"{too_long} questions do not fit in prepare.source.num_ctx ({source.num_ctx} tokens)"
        )
    if sampling.hinted or sampling.gold:
        emit.log(
            f"rows with a hint: {sampling.hinted}, with the source's own answer: {sampling.gold}"
        )
    if len(collection.pairs) < source.pairs:
        emit.log(
            f"{len(collection.pairs)} pairs instead of {source.pairs}: too few questions have "
            "both right and wrong answers"
        )
    if 0 < len(collection.rows) < spec.examples and source.fallback == "drop":
        emit.log("`--set prepare.source.fallback=gold` adds the source's own answers")
    for line in sampling.advice:
        emit.log(line)


def _nothing(description: str, sieve: Sieve, sampling: Sampling) -> DataError:
    if not sampling.questions:
        return DataError(
            f"{description} has no usable question: read {sieve.read}, left out "
            f"{sieve.in_words()}.",
            param="prepare.source.questions",
            hint="Questions need a right answer: one that ends in `#### N` or a number, or a "
            "`grader` (docs/eval.md). Questions that overlap an eval set are always left "
            "out.",
        )
    return DataError(
        f"{description} gave no row: {in_words(sampling)}.",
        param="prepare.source",
        hint=" ".join(sampling.advice)
        or "Set prepare.source.fallback=gold to use the source's own answers instead.",
    )
