"""The training loop: steps, checkpoints, and a smaller plan where memory runs out."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loco.contracts.plans import Outcome, Plan, PlanAttempt
from loco.contracts.results import LoggedStep, Preference
from loco.contracts.specs import TrainSpec
from loco.stage.program import Emitter
from loco_trainer.data.pairs import Pairs
from loco_trainer.data.rows import Row
from loco_trainer.engines.loaded import Loaded
from loco_trainer.fast import fused_lora
from loco_trainer.loop import checkpoints
from loco_trainer.loop.adapter_state import AdapterState
from loco_trainer.loop.journal import Journal, logged
from loco_trainer.loop.parts import PairsPart, Part, RowsPart
from loco_trainer.loop.validation import Validation
from loco_trainer.machine.imports import show
from loco_trainer.machine.memory import (
    give_back,
    is_exhaustion,
    out_of_memory,
    peak_gpu_gb,
    release,
)

#: A checkpoint is due this long after the last one…
_CHECKPOINT_SECONDS = 5.0
#: …or after this many times what writing one takes, so that writing stays under 5 % of the time.
_CHECKPOINT_COST = 20.0


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
    #: Seconds of the steps on rows of this attempt, in order.
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
    #: What the part on pairs did; None: there is none, or it has not begun.
    preference: Preference | None

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
        pairs: Pairs | None,
        validation: Validation,
        smaller: Callable[[Plan, bool], Plan | None],
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
            pairs: tokenized data of `spec.preference`; None: the rows are all.
            validation: measures the loss on other rows, and chooses the adapter that is kept.
            smaller: the next plan to try when memory runs out, on pairs or not; None after the last.
            load: loads the base again where the next plan holds it otherwise.
            folder: checkpoints are written to `folder/checkpoint-N`.
            emit: hears progress and checkpoints, says when to stop.
        """
        self._spec = spec
        self._plan = plan
        self._loaded = loaded
        self._rows = RowsPart(spec, rows)
        self._pairs: PairsPart | None = None
        if spec.preference and pairs:
            self._pairs = PairsPart(spec, spec.preference, pairs, first=self._rows.end)
        self._parts: list[Part] = [self._rows, *([self._pairs] if self._pairs else [])]
        self._validation = validation
        self._smaller = smaller
        self._load = load
        self._folder = folder
        self._emit = emit
        self._journal = Journal(self._parts, validation, emit)
        self._adapter = AdapterState(loaded.model, spec)
        if loaded.autocast is torch.float16:
            self._adapter.guard_float16()
        self._attempts: list[PlanAttempt] = []
        #: First step of the present plan.
        self._first = 1
        self._resumed_from_step: int | None = None
        self._saved_at = time.monotonic()
        self._save_cost = 0.0
        self._saved_step = 0

    def resume(self, checkpoint: Path) -> None:
        """Goes back to a checkpoint."""
        state = self._adapter.load(checkpoint)
        self._journal.log = [LoggedStep.model_validate(entry) for entry in state["log"]]
        self._attempts = list(checkpoints.attempts_of(checkpoint))
        self._validation.load(checkpoint, state["validation"])
        if self._pairs and state["reference"]:
            self._pairs.reference.load(checkpoint)
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
        journal = self._journal
        self._loaded.model.train()
        while journal.done < journal.total and not self._emit.stopping:
            self._first = journal.done + 1
            error = self._run_parts()
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
        selected = journal.done
        if selected == journal.total:
            self._measure(insist=True)
            # what pairs teach is not the likelihood of rows: their part is kept as it ends
            if self._pairs is None:
                selected = self._validation.choose(self._adapter, step=selected)
        return Fitted(
            loaded=self._loaded,
            log=tuple(journal.log),
            attempts=tuple(self._attempts),
            plan=self._plan,
            first_step_at=journal.first_step_at or time.time(),
            step_seconds=tuple(journal.seconds[self._rows.name]),
            tokens=journal.tokens,
            seconds=time.monotonic() - started - (self._validation.seconds - measured),
            total_steps=journal.total,
            resumed_from_step=self._resumed_from_step,
            selected_step=selected,
            preference=self._pairs.result(journal.log, journal.seconds[self._pairs.name])
            if self._pairs
            else None,
        )

    def _attempt(self, outcome: Outcome) -> PlanAttempt:
        return PlanAttempt(
            plan=self._plan,
            first_step=self._first,
            last_step=self._journal.done,
            pairs_from=self._pairs.first + 1 if self._pairs else None,
            peak_memory_gb=round(peak_gpu_gb(), 3),
            outcome=outcome,
        )

    def _run_parts(self) -> str | None:
        """Steps until the end or a stop; what memory said when it ran out, else None.

        The words are returned, not the exception: its traceback would keep the tensors alive.
        """
        self._saved_at = time.monotonic()
        for part in self._parts:
            if self._journal.done < part.end and not self._emit.stopping:
                try:
                    entered = part is not self._pairs or self._enter(part)
                except (RuntimeError, MemoryError) as error:
                    if not is_exhaustion(error):
                        raise
                    return str(error)
                words = self._run_steps(part) if entered else None
                if words is not None:
                    return words
        if self._emit.stopping and self._saved_step != self._journal.done:
            self._save()
        return None

    def _run_steps(self, part: Part) -> str | None:
        """The steps of a part that are left; as `_run_parts`."""
        journal = self._journal
        runner, steps = part.begin(self._loaded, self._adapter, self._plan, done=journal.done)
        current = next(steps, None)
        while current and self._measure():
            started = time.monotonic()
            rate = part.rate(journal.done)
            try:
                runner.start_step(current.count)
                for run_pass in current.passes:
                    run_pass()
                norm = self._adapter.step(rate)
            except (RuntimeError, MemoryError) as error:
                if not is_exhaustion(error):
                    raise
                return str(error)
            following = next(steps, None)  # while the GPU computes
            figures = torch.cat([runner.figures, norm.view(1)]).tolist()
            now = time.monotonic()
            scaled = self._adapter.scaler.is_enabled()
            step = logged(part, journal.done + 1, current.epoch, rate, figures, scaled=scaled)
            journal.book(step, tokens=current.tokens, seconds=now - started)
            journal.tell(part, self._plan, tokens=current.tokens)
            if self._emit.stopping:
                break
            if self._is_due(part, now):
                self._save()
            current = following
        return None

    def _enter(self, pairs: PairsPart) -> bool:
        """Begins the part on pairs, or goes on with it; False where a stop was asked for meanwhile."""
        reference = pairs.reference
        give_back()  # what was recorded for the rows
        if not reference.is_known:
            begins = reference.weights is None
            if begins:
                if not self._measure():
                    return False
                self._validation.choose(self._adapter, step=self._journal.done)
                self._adapter.forget_moments()
            self._journal.tell_measuring("measuring the reference", self._rows.epoch(pairs.first))
            current = self._adapter.copied()
            try:
                if reference.weights is not None:
                    self._adapter.put(reference.weights)
                if not pairs.measure_reference(self._loaded, self._adapter, self._plan, self._emit):
                    return False
            finally:
                self._adapter.put(current)
            if begins:
                self._save()
        without_dropout(self._loaded.model)
        return True

    def _measure(self, *, insist: bool = False) -> bool:
        """Measures the validation loss where an epoch of the rows or the run begins or ends.

        Returns:
            False where a stop was asked for meanwhile.
        """
        done = self._journal.done
        epoch = self._rows.epoch(done)
        ends = done in (self._rows.end, self._journal.total) or (
            done < self._rows.end and epoch.is_integer()
        )
        if not ends or not self._validation.is_open(done):
            return True
        self._journal.tell_measuring("measuring the validation loss", epoch)
        return self._validation.measure(
            self._loaded,
            self._adapter,
            step=done,
            epoch=epoch,
            micro_batch=self._plan.micro_batch,
            insist=insist,
        )

    def _measure_again(self) -> None:
        self._emit.log(
            "The base is now kept in memory in another form. Measuring the validation loss again."
        )
        size = self._plan.micro_batch
        self._validation.measure_again(self._loaded, self._adapter, micro_batch=size)
        if self._pairs:
            self._pairs.reference.forget()

    def _is_due(self, part: Part, now: float) -> bool:
        """Whether a checkpoint is worth its time.

        The end of a part has none: the adapter itself follows, or the reference's own.
        """
        if self._journal.done >= part.end:
            return False
        return now - self._saved_at >= max(_CHECKPOINT_SECONDS, _CHECKPOINT_COST * self._save_cost)

    def _save(self) -> None:
        started = time.monotonic()
        step = self._journal.done
        if not step:
            return  # nothing is lost
        folder = self._folder / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "global_step": step,
            "log": [entry.model_dump() for entry in self._journal.log],
            "plan": self._plan.model_dump(),
            "attempts": [a.model_dump() for a in (*self._attempts, self._attempt("stopped"))],
            "validation": self._validation.save(folder),
            "reference": self._pairs is not None and self._pairs.reference.save(folder),
        }
        self._adapter.save(folder, state)
        checkpoints.seal(folder)
        checkpoints.prune(self._folder)
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - started
        self._saved_step = step
        self._emit.checkpoint(folder, step=step)

    def _shrink(self, words: str) -> None:
        """Takes the next smaller plan. No step is lost: a step changes the adapter when it is whole.

        Raises:
            OutOfMemory: there is none.
        """
        on_pairs = self._pairs is not None and self._journal.done >= self._rows.end
        plan = self._smaller(self._plan, on_pairs)
        if plan is None:
            # a run that fails has no result: this is how the next one learns of it
            self._emit.progress(message="out of memory", tried=tuple(self._attempts), last=True)
            raise out_of_memory(words)
        done = self._journal.done
        before, after = (
            f"{self._plan.micro_batch} rows",
            f"{plan.micro_batch} * {plan.accumulation} rows",
        )
        if on_pairs:
            before, after = f"{self._plan.pairs} pairs", f"{plan.pairs} pairs"
        self._emit.log(
            f"Out of memory at step {done + 1} with {before} per forward pass. Continuing from "
            f"step {done} with {after}"
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


def without_dropout(model: torch.nn.Module) -> None:
    """Has dropout pass everything on: the reference was measured so, and the pairs' loss compares."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
