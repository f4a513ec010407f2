"""The training loop: steps, checkpoints, progress, and a smaller plan where memory runs out."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loco.contracts.plans import Outcome, Plan, PlanAttempt
from loco.contracts.results import LoggedStep
from loco.contracts.specs import TrainSpec
from loco.planning.batches import total_steps
from loco.stage.program import Emitter
from loco_trainer.data.batches import Batch, steps_of
from loco_trainer.data.rows import Row
from loco_trainer.engines.loaded import Loaded
from loco_trainer.fast import fused_lora
from loco_trainer.loop import checkpoints
from loco_trainer.loop.adapter_state import AdapterState
from loco_trainer.loop.passes import Passes, choose_passes
from loco_trainer.loop.schedule import diverged, rate_factor
from loco_trainer.loop.validation import Validation
from loco_trainer.machine.imports import show
from loco_trainer.machine.memory import is_exhaustion, out_of_memory, peak_gpu_gb, release

#: A checkpoint is due this long after the last one…
_CHECKPOINT_SECONDS = 5.0
#: …or after this many times what writing one takes, so that writing stays under 5 % of the time.
_CHECKPOINT_COST = 20.0


@dataclass(frozen=True)
class _Step:
    """What an optimizer step computes on."""

    #: Passes over the data when the step is done.
    epoch: float
    batches: list[Batch]


@dataclass(frozen=True)
class Fitted:
    """What a run of the loop did."""

    #: The trained model; another than at first where it was loaded again in 4 bits.
    loaded: Loaded
    log: tuple[LoggedStep, ...]
    attempts: tuple[PlanAttempt, ...]
    plan: Plan
    #: Wall-clock moment (`time.time`) at which the first step was done; none was: now. As if nothing
    #: had been measured before.
    first_step_at: float
    #: Seconds of the steps of this attempt, in order.
    step_seconds: tuple[float, ...]
    #: Tokens of this attempt's steps, padding excluded.
    tokens: int
    #: Seconds the loop took, waits for checkpoints included, measuring the validation loss not.
    seconds: float
    total_steps: int
    #: Step of the checkpoint it went on from; none: it began.
    resumed_from_step: int | None
    #: Step whose adapter the model has now.
    selected_step: int

    @property
    def median_step_seconds(self) -> float:
        """Median of the steps; 0 where none was left to do."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0


class Fit:
    """A training run: `go` does what is left of it."""

    def __init__(
        self,
        spec: TrainSpec,
        plan: Plan,
        loaded: Loaded,
        rows: list[Row],
        *,
        validation: Validation,
        smaller: Callable[[Plan], Plan | None],
        load: Callable[[Plan], Loaded],
        folder: Path,
        emit: Emitter,
    ) -> None:
        """Sets a run up.

        Args:
            spec: the recipe.
            plan: how the device is used at first.
            loaded: model with adapter, from an engine.
            rows: tokenized data.
            validation: measures the loss on other rows, and chooses the adapter that is kept.
            smaller: the next plan to try when memory runs out; None after the last.
            load: loads the base again where the next plan holds it otherwise.
            folder: checkpoints are written to `folder/checkpoint-N`.
            emit: hears progress and checkpoints, says when to stop.
        """
        self._spec = spec
        self._plan = plan
        self._loaded = loaded
        self._rows = rows
        self._validation = validation
        self._smaller = smaller
        self._load = load
        self._folder = folder
        self._emit = emit
        self._steps = total_steps(spec, len(rows))
        self._adapter = AdapterState(loaded.model, spec)
        if loaded.autocast is torch.float16:
            self._adapter.guard_float16()
        self._log: list[LoggedStep] = []
        self._attempts: list[PlanAttempt] = []
        #: First step of the present plan.
        self._first = 1
        self._seconds: list[float] = []
        self._tokens = 0
        self._first_step_at: float | None = None
        self._resumed_from_step: int | None = None
        self._saved_at = time.monotonic()
        self._save_cost = 0.0

    def resume(self, checkpoint: Path) -> None:
        """Goes back to a checkpoint."""
        state = self._adapter.load(checkpoint)
        self._log = [LoggedStep.model_validate(entry) for entry in state["log"]]
        self._attempts = list(checkpoints.attempts_of(checkpoint))
        self._validation.load(checkpoint, state["validation"])
        if state["plan"]["precision"] != self._plan.precision:
            self._measure_again()
        self._resumed_from_step = checkpoints.step_of(checkpoint)

    def go(self) -> Fitted:
        """Trains to the end, or to the step at which a stop was asked for, and leaves a checkpoint there.

        Raises:
            OutOfMemory: even the smallest plan does not fit.
            TrainingFailed: the loss is no number any more.
        """
        started, measured = time.monotonic(), self._validation.seconds
        self._loaded.model.train()
        while len(self._log) < self._steps and not self._emit.stopping:
            self._first = len(self._log) + 1
            error = self._run_steps()
            outcome: Outcome = (
                "out_of_memory"
                if error is not None
                else "stopped"
                if self._emit.stopping
                else "finished"
            )
            self._attempts.append(self._attempt(outcome))
            if error is not None:
                self._shrink(error)
        selected = len(self._log)
        if selected == self._steps:
            self._measure(insist=True)
            selected = self._validation.choose(self._adapter, step=selected)
        return Fitted(
            loaded=self._loaded,
            log=tuple(self._log),
            attempts=tuple(self._attempts),
            plan=self._plan,
            first_step_at=self._first_step_at or time.time(),
            step_seconds=tuple(self._seconds),
            tokens=self._tokens,
            seconds=time.monotonic() - started - (self._validation.seconds - measured),
            total_steps=self._steps,
            resumed_from_step=self._resumed_from_step,
            selected_step=selected,
        )

    def _attempt(self, outcome: Outcome) -> PlanAttempt:
        return PlanAttempt(
            plan=self._plan,
            first_step=self._first,
            last_step=len(self._log),
            peak_memory_gb=round(peak_gpu_gb(), 3),
            outcome=outcome,
        )

    def _run_steps(self) -> str | None:
        """Steps until the end or a stop; what memory said when it ran out, else None.

        The words are returned, not the exception: its traceback would keep the tensors alive.
        """
        plan = self._plan
        runner = choose_passes(
            self._loaded,
            self._adapter,
            recorded=plan.cuda_graphs,
            micro_batch=plan.micro_batch,
            longest=plan.max_length,
        )
        steps = self._laid_out(runner)
        self._saved_at = time.monotonic()
        current = next(steps, None)
        while current:
            if not self._measure():
                self._save()
                return None
            started = time.monotonic()
            rate = self._spec.learning_rate * rate_factor(self._spec, self._steps, len(self._log))
            try:
                runner.start_step(sum(sum(batch.answers) for batch in current.batches))
                for batch in current.batches:
                    runner.run(batch)
                norm = self._adapter.step(rate)
            except (RuntimeError, MemoryError) as error:
                if not is_exhaustion(error):
                    raise
                return str(error)
            following = next(steps, None)  # while the GPU computes
            loss, norm = torch.cat([runner.loss, norm.view(1)]).tolist()
            now = time.monotonic()
            tokens = sum(batch.tokens for batch in current.batches)
            self._done(current.epoch, loss, norm, rate, tokens=tokens, seconds=now - started)
            if self._emit.stopping or self._is_due(now):
                self._save()
            if self._emit.stopping:
                return None
            current = following
        return None

    def _laid_out(self, runner: Passes) -> Iterator["_Step"]:
        """What is left of the steps, as tensors in RAM."""
        rows_of_steps = steps_of(
            self._rows,
            step_rows=self._spec.step_rows,
            seed=self._spec.seed,
            first=len(self._log),
            last=self._steps,
        )
        size = self._plan.micro_batch
        for epoch, rows in rows_of_steps:
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            yield _Step(epoch, [runner.lay_out(part) for part in parts])

    def _done(
        self, epoch: float, loss: float, norm: float, rate: float, *, tokens: int, seconds: float
    ) -> None:
        """Books a step and tells of it."""
        step = len(self._log) + 1
        # with float16 an overflow skips the step and lowers the scale: that is no failure
        overflow = self._adapter.scaler.is_enabled() and math.isfinite(loss)
        if not (math.isfinite(loss) and (math.isfinite(norm) or overflow)):
            raise diverged(
                f"The loss or its gradient is not a number at step {step} "
                f"(loss {loss}, gradient norm {norm})."
            )
        self._first_step_at = self._first_step_at or time.time() - self._validation.seconds
        self._log.append(
            LoggedStep(
                step=step,
                epoch=round(epoch, 4),
                loss=loss,
                learning_rate=rate,
                grad_norm=norm if math.isfinite(norm) else None,
            )
        )
        self._seconds.append(seconds)
        self._tokens += tokens
        self._emit.progress(
            last=step >= self._steps,
            message="training",
            step=step,
            total_steps=self._steps,
            percent=round(100 * step / self._steps, 2),
            epoch=round(epoch, 4),
            loss=loss,
            validation_loss=self._validation.newest_loss,
            learning_rate=rate,
            grad_norm=self._log[-1].grad_norm,
            tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
            gpu_memory_gb=round(peak_gpu_gb(), 3),
            eta_seconds=round(statistics.fmean(self._seconds) * (self._steps - step), 1),
        )

    def _measure(self, *, insist: bool = False) -> bool:
        """Measures the validation loss where an epoch or the run begins or ends.

        Returns:
            False where a stop was asked for meanwhile.
        """
        done = len(self._log)
        epoch = done / math.ceil(len(self._rows) / self._spec.step_rows)
        ends = epoch.is_integer() or done == self._steps
        if not ends or not self._validation.is_open(done):
            return True
        self._emit.progress(
            last=True,
            message="measuring the validation loss",
            step=done,
            total_steps=self._steps,
            percent=round(100 * done / self._steps, 2),
            epoch=round(epoch, 4),
            validation_loss=self._validation.newest_loss,
        )
        return self._validation.measure(
            self._loaded,
            self._adapter,
            step=done,
            epoch=epoch,
            micro_batch=self._plan.micro_batch,
            insist=insist,
        )

    def _measure_again(self) -> None:
        self._emit.log("The base is held otherwise now: the validation loss is measured again.")
        size = self._plan.micro_batch
        self._validation.measure_again(self._loaded, self._adapter, micro_batch=size)

    def _is_due(self, now: float) -> bool:
        """Whether a checkpoint is worth its time; the end has none, the adapter itself follows."""
        if len(self._log) >= self._steps:
            return False
        return now - self._saved_at >= max(_CHECKPOINT_SECONDS, _CHECKPOINT_COST * self._save_cost)

    def _save(self) -> None:
        started = time.monotonic()
        step = len(self._log)
        if not step:
            return  # nothing is lost
        folder = self._folder / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "global_step": step,
            "log": [entry.model_dump() for entry in self._log],
            "plan": self._plan.model_dump(),
            "attempts": [a.model_dump() for a in (*self._attempts, self._attempt("stopped"))],
            "validation": self._validation.save(folder),
        }
        self._adapter.save(folder, state)
        checkpoints.seal(folder)
        checkpoints.prune(self._folder)
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - started
        self._emit.checkpoint(folder, step=step)

    def _shrink(self, words: str) -> None:
        """Takes the next smaller plan. No step is lost: a step changes the adapter when it is whole.

        Raises:
            OutOfMemory: there is none.
        """
        plan = self._smaller(self._plan)
        if plan is None:
            # a run that fails has no result: this is how the next one learns of it
            self._emit.progress(message="out of memory", tried=tuple(self._attempts), last=True)
            raise out_of_memory(words)
        self._emit.log(
            f"Out of memory at step {len(self._log) + 1} with {self._plan.micro_batch} rows a "
            f"forward pass; going on from step {len(self._log)} with {plan.micro_batch} * "
            f"{plan.accumulation} rows"
            + (", the base in 4 bits" if plan.precision != self._plan.precision else "")
            + (", activations computed again." if plan.gradient_checkpointing else ".")
        )
        self._adapter.gradient.zero_()
        fused_lora.forget(self._loaded.model)
        if plan.precision != self._plan.precision:
            self._load_again(plan)
        elif plan.gradient_checkpointing and not self._plan.gradient_checkpointing:
            self._loaded.recompute()
        exchanged = plan.precision != self._plan.precision
        self._plan = plan
        release()
        if exchanged:
            self._measure_again()

    def _load_again(self, plan: Plan) -> None:
        """Exchanges the base for one held otherwise; the adapter and its optimizer go on."""
        adapter = self._adapter
        for parameter in self._loaded.model.parameters():
            if not parameter.requires_grad:
                # whoever else refers to the old model, its weights are gone
                parameter.data = parameter.data.new_empty(0)
        release()
        show("bitsandbytes")
        self._loaded = self._load(plan)
        self._loaded.model.train()
        self._adapter = AdapterState(self._loaded.model, self._spec)
        self._adapter.take_over(adapter)
