"""Stage train: fine-tunes a LoRA adapter on the rows prepare wrote.

    python -m loco_trainer.train --spec adapters/math/runs/JOB/train/a1/spec.json --out /tmp/replay

Writes `checkpoints/` with the adapter, its config and the tokenizer, and below it `checkpoint-N/`
folders to resume from. The loss counts on the assistant's answer only.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from loco.contracts.plans import Engine, Lengths, Plan, Shape
from loco.contracts.results import TrainResult, ValidationRow
from loco.contracts.specs import Inputs, TrainSpec
from loco.contracts.stages import Stage
from loco.planning.memory import checkpoint_bytes
from loco.planning.ways import described
from loco.stage.gpu_lock import gpu_lock
from loco.stage.program import Emitter, main
from loco_trainer.bases import find
from loco_trainer.data import rows
from loco_trainer.engines import choose
from loco_trainer.gguf import parent as gguf_file
from loco_trainer.loop import checkpoints
from loco_trainer.loop.facts import ladder, lengths_of, plan_for
from loco_trainer.machine.disk import require_free
from loco_trainer.machine.threads import share_cpus

if TYPE_CHECKING:
    from loco_trainer.engines.loaded import Loaded
    from loco_trainer.loop.fit import Fitted

_TRAINING = "prepare/training_data.jsonl"
_VALIDATION = "prepare/validation_data.jsonl"


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
        fitted = _fit(given, facts, plan, loaded)
        _save(given, facts, loaded)
        measured = _measure(facts, fitted.plan, loaded)
    return TrainResult(
        seconds=0,
        files={f"checkpoints/{n}": f"checkpoints/{n}" for n in _names(given.folder)},
        engine=facts.engine,
        device=_device(),
        dtype=loaded.dtype,
        base_model=spec.base_model.name,
        examples=len(facts.data.rows),
        tokens=facts.data.tokens,
        trainable_parameters=sum(p.numel() for p in loaded.model.parameters() if p.requires_grad),
        total_steps=fitted.total_steps,
        resumed_from_step=fitted.resumed_from_step,
        first_loss=fitted.log[0].loss,
        last_loss=fitted.log[-1].loss,
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
        validation_loss=_mean(measured, lambda row: row.loss),
        base_validation_loss=_mean(measured, lambda row: row.base_loss),
        validation=measured,
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
    #: Folder with the base's config and tokenizer.
    config: Path
    tokenizer: Any
    data: rows.Rows
    #: Rows kept out of training; empty where prepare kept none.
    held_out: list[rows.Row]
    lengths: Lengths


def _gather(given: _Given) -> _Facts:
    spec, inputs, emit = given.spec, given.inputs, given.emit
    choose.keep_kernels(inputs.models_dir)
    engine = choose.engine_for(spec)
    choose.import_first(engine)
    emit.progress(message="reading the training data", percent=0.0, last=True)
    with given.waits:
        config = find.resolve(spec.base_model, "config", inputs.models_dir, emit)
    shape = Shape.of(find.read_config(config))
    choose.check_layers(spec, config)
    gguf_file.check_architecture(find.read_config(config))
    require_free(given.folder, ceil(checkpoint_bytes(spec, shape)), "training's checkpoints")
    tokenizer = _tokenizer(config)
    data = _read(inputs.files[_TRAINING], tokenizer, spec, emit)
    held_out = _validation_rows(inputs, tokenizer, spec)
    emit.check_stop()
    return _Facts(engine, config, tokenizer, data, held_out, lengths_of(data))


def _plan(given: _Given, facts: _Facts) -> Plan:
    plan = plan_for(given.spec, facts.config, facts.data, facts.engine)
    way = ", ".join(described(plan, given.spec.step_rows))
    given.emit.log(
        f"Plan: engine {facts.engine}, {way}; expected "
        f"{plan.memory_gb:.1f} GB, {plan.step_seconds:.2f} s a step ({plan.why})."
    )
    return plan


def _load(given: _Given, plan: Plan) -> "Loaded":
    from loco_trainer.machine import memory  # it imports torch

    spec, emit = given.spec, given.emit
    role: find.Role = "train" if plan.precision == "4bit" else "merge"
    with given.waits:
        base = find.resolve(spec.base_model, role, given.inputs.models_dir, emit)
    emit.progress(message=f"loading {spec.base_model.name}", percent=0.0, last=True)
    with memory.exhaustion_explained():
        loaded = choose.load(spec, plan, base, emit)
    emit.check_stop()
    return loaded


def _fit(given: _Given, facts: _Facts, plan: Plan, loaded: "Loaded") -> "Fitted":
    from loco_trainer.loop.fit import Fit  # after the engine

    spec, emit = given.spec, given.emit
    fit = Fit(
        spec,
        plan,
        loaded,
        facts.data.rows,
        smaller=ladder(spec, facts.config, facts.data),
        folder=given.folder,
        emit=emit,
    )
    if checkpoint := checkpoints.newest_whole(given.inputs.resume, emit):
        emit.log(f"Going on from step {checkpoints.step_of(checkpoint)} ({checkpoint}).")
        fit.resume(checkpoint)
    emit.log(f"Training {len(facts.data.rows)} rows ({facts.data.tokens} tokens) on {_device()}.")
    fitted = fit.go()
    if len(fitted.log) < fitted.total_steps:
        emit.check_stop()
    return fitted


def _save(given: _Given, facts: _Facts, loaded: "Loaded") -> None:
    loaded.model.save_pretrained(given.folder)
    facts.tokenizer.save_pretrained(given.folder)
    (given.folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for name in _names(given.folder):
        (given.folder / name).chmod(0o644)  # safetensors writes 0600; others may serve these files


def _measure(facts: _Facts, plan: Plan, loaded: "Loaded") -> tuple[ValidationRow, ...]:
    from loco_trainer.loop import validation
    from loco_trainer.machine import memory

    with memory.exhaustion_explained():
        return validation.measure(loaded, facts.held_out, micro_batch=plan.micro_batch)


def _read(path: Path, tokenizer: Any, spec: TrainSpec, emit: Emitter) -> rows.Rows:
    data = rows.read(path, tokenizer, system=spec.base_model.system, max_length=spec.max_length)
    if data.cut or data.dropped:
        emit.log(
            f"{data.cut} rows were cut at {spec.max_length} tokens, {data.dropped} left out "
            "because their question alone is longer."
        )
    return data


def _validation_rows(inputs: Inputs, tokenizer: Any, spec: TrainSpec) -> list[rows.Row]:
    """The rows prepare kept apart, but those longer than max_length; none where it kept none."""
    path = inputs.files.get(_VALIDATION)
    if path is None:
        return []
    system, longest = spec.base_model.system, spec.max_length
    whole = rows.read(path, tokenizer, system=system, max_length=2**31)
    return [row for row in whole.rows if len(row.input_ids) <= longest]


def _mean(
    measured: tuple[ValidationRow, ...], loss: Callable[[ValidationRow], float]
) -> float | None:
    """Mean over all answer tokens."""
    tokens = sum(row.tokens for row in measured)
    return sum(row.tokens * loss(row) for row in measured) / tokens if tokens else None


def _tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padded places are masked, any token will do
    return tokenizer


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def _names(folder: Path) -> list[str]:
    """Names of the adapter's own files, without the checkpoints' folders."""
    return sorted(file.name for file in folder.iterdir() if file.is_file())


if __name__ == "__main__":
    sys.exit(main(Stage.TRAIN, run))
