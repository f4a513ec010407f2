"""The training loop both engines share: TRL's SFTTrainer with our data order, checkpoints, events.

Imported after the engine, because unsloth patches trl when it is imported first.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from loco.errors import TrainingFailed
from loco.program import Emitter
from loco.specs import TrainSpec
from loco_trainer import checkpoints
from loco_trainer.engines import Loaded
from loco_trainer.memory import exhaustion_explained, peak_gpu_gb
from loco_trainer.rows import IGNORED, Row

#: A checkpoint is due this long after the last one…
_CHECKPOINT_SECONDS = 5.0
#: …or after this many times what writing one takes, so that writing stays under 5 % of the time.
_CHECKPOINT_COST = 20.0


def total_steps(spec: TrainSpec, rows: int) -> int:
    """Optimizer steps of the whole run.

    A step is batch_size * gradient_accumulation rows; an epoch's last one may be smaller.
    """
    steps_per_epoch = math.ceil(rows / (spec.batch_size * spec.gradient_accumulation))
    steps = max(1, math.ceil(spec.epochs * steps_per_epoch))
    return min(steps, spec.max_steps) if spec.max_steps else steps


def rate_factor(spec: TrainSpec, steps: int, step: int) -> float:
    """Learning rate of a step, as a part of the peak.

    Warm-up rises from above zero, so that no step is spent at a rate of zero, and the decay
    reaches zero one step after the last.

    Args:
        spec: gives the shape and the part of the steps that warms up.
        steps: optimizer steps of the whole run.
        step: optimizer steps done before this one.
    """
    warmup = math.floor(spec.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    match spec.scheduler:
        case "constant":
            return 1.0
        case "linear":
            return max(0.0, 1.0 - done)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def trainer(
    spec: TrainSpec,
    loaded: Loaded,
    rows: list[Row],
    *,
    tokenizer: Any,
    folder: Path,
    emit: Emitter,
) -> "_Fit":
    """An SFTTrainer that does exactly what the spec says.

    Args:
        spec: the recipe.
        loaded: model with adapter, from an engine.
        rows: tokenized data.
        tokenizer: pads the batches.
        folder: checkpoints are written to `folder/checkpoint-N`.
        emit: hears progress and checkpoints, says when to stop.
    """
    steps = total_steps(spec, len(rows))
    data = Dataset.from_dict(
        {"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]}
    )
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        optim="adamw_torch",
        seed=spec.seed,
        data_seed=spec.seed,
        max_length=None,  # rows are cut already
        packing=False,
        padding_free=False,  # unsloth would switch it on; our collator pads
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        loss_type=loaded.loss_type,
        bf16=loaded.precision == "bf16",
        fp16=loaded.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,  # the engine has set it up where it saves memory
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN must be seen, not averaged away
        save_strategy="no",  # `_Watch` says when
        report_to="none",
        disable_tqdm=True,
    )
    watch = _Watch(emit, steps)
    lengths = [len(r.input_ids) for r in rows]
    fit = _Fit(
        order=DataOrder(
            lengths,
            step_rows=spec.batch_size * spec.gradient_accumulation,
            seed=spec.seed,
        ),
        rate=functools.partial(rate_factor, spec, steps),
        watch=watch,
        model=loaded.model,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=_Pad(tokenizer.pad_token_id),
    )
    fit.add_callback(watch)
    return fit


def fit(sft: "_Fit", resume: Path | None) -> None:
    """Trains to the end, or to the step at which a stop was asked for.

    Raises:
        OutOfMemory: the GPU's or the machine's memory is too small for the batch.
        TrainingFailed: the loss is no number any more.
    """
    with exhaustion_explained():
        sft.train(resume_from_checkpoint=str(resume) if resume else None)


class DataOrder(Sampler[int]):
    """Shuffles rows by seed and epoch, then sorts those of one optimizer step by length.

    A step's rows are the same as without sorting, so its gradient is too; sorted micro-batches are
    padded less. Depends on seed and epoch only, so a resumed run sees the same order.
    """

    def __init__(self, lengths: list[int], *, step_rows: int, seed: int) -> None:
        super().__init__()
        self._lengths = lengths
        self._step_rows = step_rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        shuffled = torch.randperm(len(self._lengths), generator=generator).tolist()
        for start in range(0, len(shuffled), self._step_rows):
            yield from sorted(
                shuffled[start : start + self._step_rows], key=lambda i: (self._lengths[i], i)
            )


class _Pad:
    """Pads a micro-batch to its longest row."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([r[name] + [filler] * (longest - len(r[name])) for r in rows])

        mask = [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
        return {
            "input_ids": padded("input_ids", self._pad_token_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": torch.tensor(mask),
        }


class _Fit(SFTTrainer):
    """SFTTrainer with our data order and sealed checkpoints."""

    def __init__(
        self, *, order: DataOrder, rate: Callable[[int], float], watch: "_Watch", **arguments: Any
    ) -> None:
        self._order = order
        self._rate = rate
        self.watch = watch
        super().__init__(**arguments)
        # TRL narrows the adapter of a 4-bit base to bfloat16, in which an update below 0.2 % of a
        # weight is rounded away.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _get_train_sampler(self, *_: Any) -> DataOrder:
        return self._order

    def create_scheduler(self, *_: Any, optimizer: Any = None, **__: Any) -> LambdaLR:
        """Our learning rate over the steps."""
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self._rate)
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        """Counts the tokens that are really computed on."""
        self.watch.tokens += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, *rest)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.monotonic()
        Trainer._save_checkpoint(self, model, trial)  # TRL's would write a model card each time
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        checkpoints.seal(folder)
        checkpoints.prune(folder.parent)
        self.watch.saved(folder, self.state.global_step, time.monotonic() - started)


class _Watch(TrainerCallback):
    """Says how the run goes, decides when a checkpoint is due, stops on request or on NaN."""

    def __init__(self, emit: Emitter, steps: int) -> None:
        self._emit = emit
        self._steps = steps
        self._started = self._step_started = self._saved_at = time.monotonic()
        self._save_cost = 0.0
        self._saved_step = -1
        self._first_step = 0
        #: Tokens computed on in this attempt, padding excluded.
        self.tokens = 0
        self._step_tokens = 0

    def saved(self, folder: Path, step: int, seconds: float) -> None:
        """A checkpoint is complete on disk."""
        self._saved_at, self._save_cost, self._saved_step = time.monotonic(), seconds, step
        self._emit.checkpoint(folder, step=step)

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Starts the clocks; a resumed run starts at the checkpoint's step."""
        self._started = self._step_started = self._saved_at = time.monotonic()
        self._first_step = state.global_step

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Asks for a checkpoint when one is due."""
        since = time.monotonic() - self._saved_at
        due = since >= max(_CHECKPOINT_SECONDS, _CHECKPOINT_COST * self._save_cost)
        if self._emit.stopping:
            control.should_training_stop = True
        control.should_save |= due or self._emit.stopping or state.global_step >= self._steps

    def on_epoch_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Each epoch ends with a checkpoint."""
        control.should_save |= self._saved_step != state.global_step

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line a step: what a person watching wants to know."""
        if logs is None or "loss" not in logs:
            return
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            raise TrainingFailed(
                f"The loss or its gradient is not a number at step {state.global_step} "
                f"(loss {logs['loss']}, gradient norm {logs.get('grad_norm')}).",
                param="train.learning_rate",
                hint="Lower train.learning_rate (a tenth is a good try) or raise "
                "train.warmup_ratio, and look for odd rows in training_data.jsonl.",
            )
        now = time.monotonic()
        done = state.global_step - self._first_step
        tokens, self._step_tokens = self.tokens - self._step_tokens, self.tokens
        rate = tokens / max(now - self._step_started, 1e-9)
        self._step_started = now
        self._emit.progress(
            last=state.global_step >= self._steps,
            message="training",
            step=state.global_step,
            total_steps=self._steps,
            percent=round(100 * state.global_step / self._steps, 2),
            epoch=round(state.epoch or 0.0, 4),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=round(rate, 1),
            gpu_memory_gb=round(peak_gpu_gb(), 3),
            eta_seconds=round(
                (now - self._started) / max(done, 1) * (self._steps - state.global_step), 1
            ),
        )


def tokens_computed(sft: "_Fit") -> int:
    """Tokens of this attempt's steps, padding excluded."""
    return sft.watch.tokens
