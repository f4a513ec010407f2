"""Stage train: fine-tunes a LoRA adapter on the rows prepare wrote.

    python -m loco_trainer.train --spec adapters/math/runs/JOB/train/a1/spec.json --out /tmp/replay

Writes `checkpoints/` with the adapter, its config and the tokenizer, and below it `checkpoint-N/`
folders to resume from. The loss counts on the assistant's answer only.
"""

import sys
import time
from pathlib import Path
from typing import Any

from loco.gpu_lock import gpu_lock
from loco.program import Emitter, main
from loco.results import LoggedStep, TrainResult
from loco.specs import Inputs, TrainSpec
from loco.stages import Stage
from loco_trainer import base_models, checkpoints, engines, rows
from loco_trainer.disk import require_free
from loco_trainer.threads import share_cpus

#: Bytes of a trained parameter in a checkpoint: float32 weight and the two moments of AdamW.
_CHECKPOINT_BYTES = 12
#: Checkpoints on disk at once while the newest is written.
_CHECKPOINTS = 3


def run(spec: TrainSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> TrainResult:
    """Trains the adapter; resumes from the newest whole checkpoint of earlier attempts."""
    share_cpus()
    with gpu_lock(inputs.locks_dir, emit):
        return _train(spec, inputs, out_dir, emit)


def _train(spec: TrainSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> TrainResult:
    engine = engines.choose(spec)
    role: base_models.Role = "train" if engines.holds_4bit(spec) else "merge"
    base = base_models.resolve(spec.base_model, role, inputs.models_dir, emit)
    require_free(out_dir, _checkpoint_bytes(spec, base), "training's checkpoints")
    emit.progress(message=f"loading {spec.base_model.name}", percent=0.0, last=True)
    from loco_trainer import memory  # imports torch

    with memory.exhaustion_explained():
        loaded = engines.load(engine, spec, base, emit, cache_dir=inputs.models_dir)
    tokenizer = _tokenizer(base)
    data = rows.read(
        inputs.files["prepare/training_data.jsonl"],
        tokenizer,
        system=spec.base_model.system,
        max_length=spec.max_length,
    )
    if data.cut or data.dropped:
        emit.log(
            f"{data.cut} rows were cut at {spec.max_length} tokens, {data.dropped} left out "
            "because their question alone is longer."
        )
    emit.check_stop()

    from loco_trainer import fitting  # after the engine: unsloth must come before trl

    folder = out_dir / "checkpoints"
    trainer = fitting.trainer(
        spec, loaded, data.rows, tokenizer=tokenizer, folder=folder, emit=emit
    )
    resume = checkpoints.newest_whole(inputs.resume, emit)
    if resume:
        emit.log(f"Going on from step {checkpoints.step_of(resume)} ({resume}).")
    emit.log(
        f"Training {len(data.rows)} rows ({data.tokens} tokens) with engine {engine} on "
        f"{_device()} in {loaded.dtype}: {fitting.total_steps(spec, len(data.rows))} steps."
    )
    started = time.monotonic()
    fitting.fit(trainer, resume)
    seconds = time.monotonic() - started
    if trainer.state.global_step < trainer.args.max_steps:
        emit.check_stop()

    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for file in _adapter_files(folder):
        file.chmod(0o644)  # safetensors writes 0600, and others may serve these files
    log = _log(trainer.state.log_history)
    return TrainResult(
        seconds=0,
        files={f"checkpoints/{f.name}": f"checkpoints/{f.name}" for f in _adapter_files(folder)},
        engine=engine,
        device=_device(),
        dtype=loaded.dtype,
        base_model=spec.base_model.name,
        examples=len(data.rows),
        tokens=data.tokens,
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        total_steps=trainer.args.max_steps,
        resumed_from_step=checkpoints.step_of(resume) if resume else None,
        first_loss=log[0].loss,
        last_loss=log[-1].loss,
        train_seconds=round(seconds, 3),
        tokens_per_second=round(fitting.tokens_computed(trainer) / max(seconds, 1e-9), 1),
        peak_gpu_memory_gb=round(memory.peak_gpu_gb(), 3),
        log=log,
    )


def _checkpoint_bytes(spec: TrainSpec, base: Path) -> int:
    """Upper bound of what the checkpoints take, from the base's shape.

    A LoRA pair on a linear layer of n inputs and m outputs has r * (n + m) parameters, and no
    linear layer of a block is larger than hidden + intermediate size together.
    """
    config = base_models.read_config(base)
    config = config.get("text_config", config)
    layer = config["hidden_size"] + config.get("intermediate_size", 4 * config["hidden_size"])
    targets = spec.lora.target_modules
    modules = len(engines.BLOCK_LINEARS if isinstance(targets, str) else targets)
    parameters = spec.lora.r * layer * modules * config["num_hidden_layers"]
    return parameters * _CHECKPOINT_BYTES * _CHECKPOINTS


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


def _log(history: list[dict[str, Any]]) -> tuple[LoggedStep, ...]:
    return tuple(
        LoggedStep(
            step=entry["step"],
            epoch=entry["epoch"],
            loss=entry["loss"],
            learning_rate=entry["learning_rate"],
            grad_norm=entry.get("grad_norm"),
        )
        for entry in history
        if "loss" in entry
    )


if __name__ == "__main__":
    sys.exit(main(Stage.TRAIN, run))
