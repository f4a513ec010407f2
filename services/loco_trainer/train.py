"""Stage train: fine-tunes a LoRA adapter on the rows prepare wrote.

    python -m loco_trainer.train --spec adapters/math/runs/JOB/train/a1/spec.json --out /tmp/replay

Writes `checkpoints/` with the adapter, its config and the tokenizer, and below it `checkpoint-N/`
folders to resume from. The loss counts on the assistant's answer only.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from loco.contracts.plans import Shape
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
from loco_trainer.loop import checkpoints
from loco_trainer.machine.disk import require_free
from loco_trainer.machine.threads import share_cpus

_TRAINING = "prepare/training_data.jsonl"
_VALIDATION = "prepare/validation_data.jsonl"


def run(spec: TrainSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> TrainResult:
    """Trains the adapter; resumes from the newest whole checkpoint of earlier attempts."""
    share_cpus()
    wait = _Wait()
    with ExitStack() as held:
        with wait:
            held.enter_context(gpu_lock(inputs.locks_dir, emit))
        return _train(spec, inputs, out_dir, emit, wait)


class _Wait:
    """Seconds spent on what the next run may not meet: another job on the GPU, a download."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._begun


def _train(
    spec: TrainSpec, inputs: Inputs, out_dir: Path, emit: Emitter, wait: _Wait
) -> TrainResult:
    choose.keep_kernels(inputs.models_dir)
    engine = choose.engine_for(spec)
    choose.import_first(engine)
    emit.progress(message="reading the training data", percent=0.0, last=True)
    with wait:
        known = find.resolve(spec.base_model, "config", inputs.models_dir, emit)
    shape = Shape.of(find.read_config(known))
    require_free(out_dir, math.ceil(checkpoint_bytes(spec, shape)), "training's checkpoints")
    tokenizer = _tokenizer(known)
    data = _read(inputs.files[_TRAINING], tokenizer, spec, emit)
    held_out = _validation_rows(inputs, tokenizer, spec)
    emit.check_stop()

    from loco_trainer.loop import facts  # they import torch
    from loco_trainer.machine import memory

    lengths = facts.lengths_of(data)
    chosen = facts.plan_for(spec, known, data, engine)
    role: find.Role = "train" if chosen.precision == "4bit" else "merge"
    with wait:
        base = find.resolve(spec.base_model, role, inputs.models_dir, emit)
    emit.log(
        f"Plan: engine {engine}, {', '.join(described(chosen, spec.step_rows))}; expected "
        f"{chosen.memory_gb:.1f} GB, {chosen.step_seconds:.2f} s a step ({chosen.why})."
    )
    emit.progress(message=f"loading {spec.base_model.name}", percent=0.0, last=True)
    with memory.exhaustion_explained():
        loaded = choose.load(spec, chosen, base, emit)
    emit.check_stop()

    from loco_trainer.loop import fit as fitting
    from loco_trainer.loop import validation  # after the engine

    folder = out_dir / "checkpoints"
    fit = fitting.Fit(
        spec,
        chosen,
        loaded,
        data.rows,
        smaller=facts.ladder(spec, known, data),
        folder=folder,
        emit=emit,
    )
    resume = checkpoints.newest_whole(inputs.resume, emit)
    if resume:
        emit.log(f"Going on from step {checkpoints.step_of(resume)} ({resume}).")
        fit.resume(resume)
    emit.log(f"Training {len(data.rows)} rows ({data.tokens} tokens) on {_device()}.")
    started = time.monotonic()
    fitted = fit.go()
    seconds = time.monotonic() - started
    if len(fitted.log) < fitted.total_steps:
        emit.check_stop()

    loaded.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for file in _adapter_files(folder):
        file.chmod(0o644)  # safetensors writes 0600, and others may serve these files
    with memory.exhaustion_explained():
        measured = validation.measure(loaded, held_out, micro_batch=fitted.plan.micro_batch)
    return TrainResult(
        seconds=0,
        files={f"checkpoints/{f.name}": f"checkpoints/{f.name}" for f in _adapter_files(folder)},
        engine=engine,
        device=_device(),
        dtype=loaded.dtype,
        base_model=spec.base_model.name,
        examples=len(data.rows),
        tokens=data.tokens,
        trainable_parameters=sum(p.numel() for p in loaded.model.parameters() if p.requires_grad),
        total_steps=fitted.total_steps,
        resumed_from_step=checkpoints.step_of(resume) if resume else None,
        first_loss=fitted.log[0].loss,
        last_loss=fitted.log[-1].loss,
        train_seconds=round(seconds, 3),
        tokens_per_second=round(fitted.tokens / max(seconds, 1e-9), 1),
        peak_gpu_memory_gb=max((a.peak_memory_gb for a in fitted.attempts), default=0.0),
        log=fitted.log,
        plan=fitted.plan,
        attempts=fitted.attempts,
        lengths=lengths,
        start_seconds=round(
            fitted.first_step_at - psutil.Process().create_time() - wait.seconds, 3
        ),
        step_seconds=round(fitted.median_step_seconds, 5),
        validation_loss=_mean(measured, lambda row: row.loss),
        base_validation_loss=_mean(measured, lambda row: row.base_loss),
        validation=measured,
    )


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


def _adapter_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file())


if __name__ == "__main__":
    sys.exit(main(Stage.TRAIN, run))
