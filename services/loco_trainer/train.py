"""Stage train: fine-tunes a LoRA adapter on the rows prepare wrote.

    python -m loco_trainer.train --spec adapters/math/runs/JOB/train/a1/spec.json --out /tmp/replay

Writes `checkpoints/` with the adapter, its config and the tokenizer, and below it `checkpoint-N/`
folders to resume from. The loss counts on the assistant's answers only. With `train.preference` steps
on pairs of a right and a wrong answer follow.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from loco.contracts.errors import InvalidRequest
from loco.contracts.plans import Engine, Lengths, Plan, Shape
from loco.contracts.results import TrainResult
from loco.contracts.specs import Inputs, TrainSpec
from loco.contracts.stages import Stage
from loco.planning.lessons import Lessons
from loco.planning.memory import checkpoint_bytes
from loco.planning.ways import described
from loco.recipes.base_files import with_stored_size
from loco.stage.gpu_lock import gpu_lock
from loco.stage.program import Emitter, main
from loco_trainer.bases import find
from loco_trainer.data import pairs, rows
from loco_trainer.data.pairs import Pairs
from loco_trainer.data.template import Template
from loco_trainer.engines import choose
from loco_trainer.gguf import parent as gguf_file
from loco_trainer.loop import checkpoints
from loco_trainer.loop.facts import ladder, lengths_of, plan_for, shape_of
from loco_trainer.machine.disk import require_free
from loco_trainer.machine.threads import share_cpus

if TYPE_CHECKING:
    from loco_trainer.engines.loaded import Loaded
    from loco_trainer.loop.fit import Fitted
    from loco_trainer.loop.validation import Validation

_TRAINING = "prepare/training_data.jsonl"
_VALIDATION = "prepare/validation_data.jsonl"
_PREFERENCE = "prepare/preference_data.jsonl"
#: Share of rows cut at max_length above which a warning is due.
_MOST_CUT = 0.05


def run(spec: TrainSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> TrainResult:
    """Trains the adapter; resumes from the newest whole checkpoint of earlier attempts."""
    share_cpus()
    waits = _Waits()
    with ExitStack() as held:
        with waits:
            held.enter_context(gpu_lock(inputs.locks_dir, emit))
        given = _Given(spec, inputs, out_dir / "checkpoints", emit, waits)
        facts = _gather(given)
        plan = _plan(given, facts)
        loaded = _load(given, plan)
        fitted, validation = _fit(given, facts, plan, loaded)
        loaded = fitted.loaded
        _save(given, facts, loaded)
    return TrainResult(
        seconds=0,
        files={f"checkpoints/{n}": f"checkpoints/{n}" for n in _names(given.folder)},
        engine=facts.engine,
        device=_device(),
        dtype=loaded.dtype,
        base_model=spec.base_model.name,
        examples=len(facts.data.rows),
        tokens=facts.data.tokens,
        conversations=facts.data.conversations,
        cut=facts.data.cut,
        dropped=facts.data.dropped,
        lost=facts.data.lost,
        trainable_parameters=sum(p.numel() for p in loaded.model.parameters() if p.requires_grad),
        total_steps=fitted.total_steps,
        resumed_from_step=fitted.resumed_from_step,
        first_loss=fitted.log[0].loss,
        last_loss=[step.loss for step in fitted.log if step.part == "training"][-1],
        train_seconds=round(fitted.seconds, 3),
        tokens_per_second=round(fitted.tokens / max(fitted.seconds, 1e-9), 1),
        peak_gpu_memory_gb=max((a.peak_memory_gb for a in fitted.attempts), default=0.0),
        log=fitted.log,
        plan=fitted.plan,
        attempts=fitted.attempts,
        lengths=facts.lengths,
        start_seconds=round(
            fitted.first_step_at - psutil.Process().create_time() - waits.seconds, 3
        ),
        step_seconds=round(fitted.median_step_seconds, 5),
        validation_loss=validation.loss_at(fitted.selected_step),
        base_validation_loss=validation.loss_at(0),
        validation=validation.rows(),
        validations=tuple(validation.log),
        best_step=validation.best.step if validation.best else None,
        best_validation_loss=validation.best.loss if validation.best else None,
        selected_step=fitted.selected_step,
        validation_seconds=round(validation.seconds, 3),
        preference=fitted.preference,
    )


class _Waits:
    """Seconds spent on what the next run may not meet: another job on the GPU, a download."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._begun


@dataclass(frozen=True)
class _Given:
    """What the stage was asked for, and whom it tells."""

    spec: TrainSpec
    inputs: Inputs
    #: The adapter and its checkpoints are written here.
    folder: Path
    emit: Emitter
    waits: _Waits


@dataclass(frozen=True)
class _Facts:
    """What a plan follows from, known before a weight is loaded."""

    engine: Engine
    #: The base's.
    shape: Shape
    template: Template
    data: rows.Rows
    #: Rows kept out of training; empty where prepare kept none.
    held_out: list[rows.Row]
    lengths: Lengths
    #: The newest that can be gone on from.
    checkpoint: Path | None
    #: What earlier runs of the base, and this one until the checkpoint, teach about memory.
    lessons: Lessons
    #: Of train.preference; None: not asked for.
    pairs: Pairs | None = None


def _gather(given: _Given) -> _Facts:
    spec, inputs, emit = given.spec, given.inputs, given.emit
    choose.keep_kernels(inputs.models_dir)
    engine = choose.engine_for(spec)
    choose.import_first(engine)
    emit.progress(message="reading the training data", percent=0.0, last=True)
    with given.waits:
        config = find.resolve(spec.base_model, "config", inputs.models_dir, emit)
    shape = shape_of(spec, config, inputs.models_dir)
    choose.check_layers(spec, config)
    gguf_file.check_architecture(find.read_config(config))
    require_free(given.folder, ceil(checkpoint_bytes(spec, shape)), "training's checkpoints")
    template = _template(config, spec.base_model.system)
    data = _read(inputs.files[_TRAINING], template, spec, emit)
    held_out = _validation_rows(inputs, template, spec)
    answers = _pairs(inputs, template, spec, emit)
    emit.check_stop()
    checkpoint = checkpoints.newest_whole(inputs.resume, emit)
    tried = checkpoints.attempts_of(checkpoint)[::-1] if checkpoint else ()
    lessons = Lessons((*tried, *inputs.tried))
    return _Facts(
        engine=engine,
        shape=shape,
        template=template,
        data=data,
        held_out=held_out,
        pairs=answers,
        lengths=lengths_of(data, answers),
        checkpoint=checkpoint,
        lessons=lessons,
    )


def _plan(given: _Given, facts: _Facts) -> Plan:
    spec, models_dir = given.spec, given.inputs.models_dir
    data, engine, lessons = facts.data, facts.engine, facts.lessons
    worked = checkpoints.plan_of(facts.checkpoint) if facts.checkpoint else None
    plan = plan_for(
        spec, facts.shape, data, engine, pairs=facts.pairs, lessons=lessons, worked=worked
    )
    if plan.precision == "4bit" and facts.shape.quantized_bytes is None:
        _fetch(given, plan)  # its files say how large it is
        shape = with_stored_size(facts.shape, spec.base_model, models_dir)
        plan = plan_for(
            spec, shape, data, engine, pairs=facts.pairs, lessons=lessons, worked=worked
        )
    way = ", ".join(described(plan, spec.step_rows))
    given.emit.log(
        f"Plan: engine {facts.engine}, {way}; expected {plan.memory_gb:.1f} GB, "
        f"{plan.step_seconds:.2f} s per step ({plan.why})."
    )
    return plan


def _load(given: _Given, plan: Plan) -> "Loaded":
    from loco_trainer.machine import memory  # it imports torch

    spec, emit = given.spec, given.emit
    base = _fetch(given, plan)
    emit.progress(message=f"loading {spec.base_model.name}", percent=0.0, last=True)
    with memory.exhaustion_explained():
        loaded = choose.load(spec, plan, base, emit)
    emit.check_stop()
    return loaded


def _fetch(given: _Given, plan: Plan) -> Path:
    """The folder of the weights a plan loads."""
    role: find.Role = "train" if plan.precision == "4bit" else "merge"
    with given.waits:
        return find.resolve(given.spec.base_model, role, given.inputs.models_dir, given.emit)


def _fit(given: _Given, facts: _Facts, plan: Plan, loaded: "Loaded") -> "tuple[Fitted, Validation]":
    from loco_trainer.loop.fit import Fit  # after the engine
    from loco_trainer.loop.validation import Validation

    spec, emit = given.spec, given.emit
    validation = Validation(facts.held_out, spec, emit)
    fit = Fit(
        spec,
        plan,
        loaded,
        facts.data.rows,
        pairs=facts.pairs,
        validation=validation,
        smaller=ladder(spec, facts.shape, facts.data, pairs=facts.pairs, lessons=facts.lessons),
        load=lambda smaller: _load(given, smaller),
        folder=given.folder,
        emit=emit,
    )
    if checkpoint := facts.checkpoint:
        emit.log(f"Continuing from step {checkpoints.step_of(checkpoint)} ({checkpoint}).")
        fit.resume(checkpoint)
    then = f", then {len(facts.pairs.pairs)} pairs," if facts.pairs else ""
    emit.log(
        f"Training {len(facts.data.rows)} rows ({facts.data.tokens} tokens){then} on {_device()}."
    )
    fitted = fit.go()
    if len(fitted.log) < fitted.total_steps:
        emit.check_stop()
    return fitted, validation


def _save(given: _Given, facts: _Facts, loaded: "Loaded") -> None:
    loaded.model.save_pretrained(given.folder)
    facts.template.tokenizer.save_pretrained(given.folder)
    (given.folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for name in _names(given.folder):
        (given.folder / name).chmod(0o644)  # safetensors writes 0600; others may serve these files


def _read(path: Path, template: Template, spec: TrainSpec, emit: Emitter) -> rows.Rows:
    data = rows.read(path, template, max_length=spec.max_length)
    if data.conversations is not None and len(data.rows) + data.dropped != data.conversations:
        emit.log(
            f"{data.conversations} conversations became {len(data.rows) + data.dropped} rows: "
            "the chat template changes earlier answers in a chat."
        )
    if data.cut or data.lost:
        emit.log(
            f"{data.cut} rows were cut at {spec.max_length} tokens inside an answer. "
            f"{data.lost} answers that begin later were left out, and with them {data.dropped} "
            "rows."
        )
    if data.cut > _MOST_CUT * len(data.rows):
        emit.log(
            f"Warning: {data.cut / len(data.rows):.0%} of the rows have no end. A model trained "
            f"on them may not end its answers. Raise train.max_length ({spec.max_length}), or "
            "leave long rows out of the data."
        )
    if data.thinking:
        emit.log(
            f"{data.thinking} conversations have thoughts, so they train the model for use with "
            "thinking on. Register and eval ask with thinking off."
        )
    return data


def _validation_rows(inputs: Inputs, template: Template, spec: TrainSpec) -> list[rows.Row]:
    """The rows prepare kept apart, but those longer than max_length; none where it kept none.

    Raises:
        InvalidRequest: there are none to choose the best adapter by.
    """
    path = inputs.files.get(_VALIDATION)
    whole = rows.read(path, template, max_length=2**31).rows if path else []
    fitting = [row for row in whole if len(row.input_ids) <= spec.max_length]
    if spec.select == "best" and not fitting:
        why = (
            f"all {len(whole)} of them are longer than max_length ({spec.max_length} tokens)"
            if whole
            else "prepare kept none"
        )
        raise InvalidRequest(
            f"train.select: best needs validation rows, and {why}.",
            param="train.select",
            hint="Set prepare.validation to about 32, with a source that has that many more "
            "rows than prepare.examples, and a train.max_length that they fit. Or set "
            "train.select: last.",
        )
    return fitting


def _pairs(inputs: Inputs, template: Template, spec: TrainSpec, emit: Emitter) -> Pairs | None:
    """The pairs prepare wrote; None where the recipe trains on none.

    Raises:
        InvalidRequest: it asks for them, and prepare wrote none.
    """
    if spec.preference is None:
        return None
    path = inputs.files.get(_PREFERENCE)
    if path is None:
        raise InvalidRequest(
            "train.preference needs pairs of a right and a wrong answer, but prepare made none.",
            param="train.preference",
            hint="Set prepare.source.kind: self and prepare.source.pairs, or leave "
            "train.preference out.",
        )
    found = pairs.read(path, template, max_length=spec.max_length)
    if found.left_out:
        emit.log(
            f"{found.left_out} of {len(found.pairs) + found.left_out} pairs were left out, "
            f"because an answer ends after train.max_length ({spec.max_length} tokens)."
        )
    return found


def _template(base: Path, system: str | None) -> Template:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padded places are masked, any token will do
    return Template.of(tokenizer, system)


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def _names(folder: Path) -> list[str]:
    """Names of the adapter's own files, without the checkpoints' folders."""
    return sorted(file.name for file in folder.iterdir() if file.is_file())


if __name__ == "__main__":
    sys.exit(main(Stage.TRAIN, run))
