"""The loss on rows that are not trained on, over a run; and the adapter whose loss was lowest.

It is measured before training, after each epoch and at the end. An adapter that is to be kept lies in RAM as one flat tensor, and in every checkpoint, so that a
resumed run chooses as an uninterrupted one does.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loco.contracts.results import ValidationLoss, ValidationRow
from loco.contracts.specs import TrainSpec
from loco.stage.program import Emitter
from loco_trainer.data.rows import IGNORED, Row
from loco_trainer.engines.loaded import Loaded
from loco_trainer.fast import fused_lora
from loco_trainer.loop.adapter_state import AdapterState
from loco_trainer.loop.schedule import diverged
from loco_trainer.machine.memory import give_back, is_exhaustion, out_of_memory

_BEST = "best.safetensors"


class Validation:
    """What a run measured on its validation rows; without rows it measures nothing."""

    def __init__(self, rows: Sequence[Row], spec: TrainSpec, emit: Emitter) -> None:
        """Nothing measured yet.

        Args:
            rows: as tokenized for training.
            spec: says which adapter is kept.
            emit: hears every loss, says when to stop.
        """
        self._rows = list(rows)
        self._keeps_best = spec.select == "best"
        self._emit = emit
        #: The losses measured, in order of their steps.
        self.log: list[ValidationLoss] = []
        #: Seconds this process spent on it.
        self.seconds = 0.0
        #: Answer tokens of each row.
        self._tokens = [sum(label != IGNORED for label in row.labels[1:]) for row in self._rows]
        #: Mean loss of each row before training, with the best and with the newest adapter.
        self._base: list[float] = []
        self._lowest: list[float] = []
        self._newest: list[float] = []
        #: The best adapter, where it is to be kept.
        self._weights: torch.Tensor | None = None

    @property
    def best(self) -> ValidationLoss | None:
        """The lowest loss, the first of equal ones; None before any was measured."""
        return min(self.log, key=lambda point: point.loss, default=None)

    @property
    def newest_loss(self) -> float | None:
        """The loss measured last; None before any was."""
        return self.log[-1].loss if self.log else None

    @property
    def lowest_loss(self) -> float | None:
        """The lowest loss so far; None before any was measured."""
        return self.best.loss if self.best else None

    @property
    def newest_epoch(self) -> float | None:
        """Passes over the training data after which that one was measured."""
        return self.log[-1].epoch if self.log else None

    def is_open(self, step: int) -> bool:
        """Whether there are rows, and the loss after a step has not been measured."""
        return bool(self._rows) and self.loss_at(step) is None

    def measure(
        self,
        loaded: Loaded,
        adapter: AdapterState,
        *,
        step: int,
        epoch: float,
        micro_batch: int,
        insist: bool = False,
    ) -> bool:
        """Measures the adapter as it is after a step that `is_open`.

        Args:
            loaded: the model under training.
            adapter: its adapter.
            step: optimizer steps done.
            epoch: passes over the training data done.
            micro_batch: rows a forward pass; fewer where they do not fit.
            insist: goes on although a stop was asked for.

        Returns:
            False where a stop was asked for meanwhile: it is still to be measured.

        Raises:
            OutOfMemory: not even one row fits, and the best adapter is to be kept.
            TrainingFailed: the loss is no number.
        """
        losses = self._row_losses(loaded, micro_batch, insist=insist)
        if losses is None:
            return not self._emit.stopping or insist
        self._book(step, epoch, losses, adapter)
        return True

    def measure_again(self, loaded: Loaded, adapter: AdapterState, *, micro_batch: int) -> None:
        """Measures what was measured with a base held otherwise: losses of two bases do not compare.

        Only what is at hand can be: the base, and the best adapter where it is kept.
        """
        best, before = self.best, self.log
        if best is None:
            return
        weights = self._weights
        at_hand = {0: torch.zeros_like(adapter.parameters.data)}  # nothing added: the base
        if weights is not None:
            at_hand[best.step] = weights
        current = adapter.copied()
        self.log, self._lowest, self._weights = [], [], None
        try:
            for point in before:
                if point.step in at_hand and self._rows:
                    adapter.put(at_hand[point.step])
                    losses = self._row_losses(loaded, micro_batch, insist=True)
                    if losses is not None:
                        self._book(point.step, point.epoch, losses, adapter)
        finally:
            adapter.put(current)

    def choose(self, adapter: AdapterState, *, step: int) -> int:
        """Puts the adapter that is to be kept in its place, and says so.

        Args:
            adapter: as it is at the end.
            step: optimizer steps done.

        Returns:
            The step whose adapter it is now.
        """
        best = self.best
        if best is None or best.step == step:
            return step
        last = self.log[-1]
        if best.step == 0:
            words = (
                f"Warning: training made the validation loss worse every time: {best.loss:.4f} "
                f"before training, {last.loss:.4f} after step {last.step}. "
            )
            kept = (
                "The adapter of step 0 is kept. It changes nothing, so the model equals the base. "
            )
            fix = "Try a lower train.learning_rate, fewer train.epochs or other rows."
        else:
            words = (
                f"The validation loss was lowest after step {best.step} (epoch {best.epoch:g}): "
                f"{best.loss:.4f}, and {last.loss:.4f} after step {last.step}. "
            )
            kept, fix = "That adapter is kept.", ""
        if self._weights is None:
            kept = "The last adapter is kept. train.select: best would keep the earlier one. "
        self._emit.log((words + kept + fix).strip())
        if self._weights is None:
            return step
        adapter.put(self._weights)
        self._newest = self._lowest
        return best.step

    def loss_at(self, step: int) -> float | None:
        """The loss after a step; None where it was not measured."""
        return next((point.loss for point in self.log if point.step == step), None)

    def rows(self) -> tuple[ValidationRow, ...]:
        """Each row's loss with the adapter that is kept, and without it; none were not all measured."""
        if not (self._base and self._newest):
            return ()
        return tuple(
            ValidationRow(tokens=count, base_loss=old, loss=new)
            for count, old, new in zip(self._tokens, self._base, self._newest, strict=True)
        )

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the best adapter into a checkpoint; returns the rest, plain JSON."""
        if self._weights is not None:
            save_file({"weights": self._weights}, folder / _BEST)
        return {
            "log": [point.model_dump() for point in self.log],
            "base": self._base,
            "lowest": self._lowest,
        }

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Goes back to what `save` wrote."""
        self.log = [ValidationLoss.model_validate(point) for point in state["log"]]
        self._base, self._lowest = state["base"], state["lowest"]
        if self._keeps_best and self.log:
            self._weights = load_file(folder / _BEST)["weights"]

    def _book(self, step: int, epoch: float, losses: list[float], adapter: AdapterState) -> None:
        total = sum(self._tokens)
        loss = sum(n * mean for n, mean in zip(self._tokens, losses, strict=True)) / total
        point = ValidationLoss(step=step, epoch=round(epoch, 4), loss=loss)
        where = f"after step {step} (epoch {epoch:.4g})" if step else "before training"
        if not loss < float("inf"):
            raise diverged(f"The validation loss is not a number {where} ({loss}).")
        self.log.append(point)
        self._newest = losses
        if step == 0:
            self._base = losses
        if self.best is point:
            self._lowest = losses
            if self._keeps_best:
                self._weights = adapter.copied()
        self._emit.log(f"Validation loss {loss:.4f} {where}.")

    def _row_losses(
        self, loaded: Loaded, micro_batch: int, *, insist: bool = False
    ) -> list[float] | None:
        """Mean loss of each row; None where a stop was asked for, or no row fits from here on."""
        started = time.monotonic()
        try:
            with loaded.evaluating():
                return self._losses_that_fit(loaded, micro_batch, insist=insist)
        finally:
            self.seconds += time.monotonic() - started

    def _losses_that_fit(
        self, loaded: Loaded, micro_batch: int, *, insist: bool
    ) -> list[float] | None:
        while True:
            # the words, not the exception: its traceback would keep the tensors alive
            losses, words = self._try(loaded, micro_batch, insist=insist)
            if words is None:
                return losses
            fused_lora.forget(loaded.model)
            give_back()
            if micro_batch > 1:
                micro_batch = (micro_batch + 1) // 2
            elif self._keeps_best and not self.log:
                raise out_of_memory(words)
            else:
                self._rows, self._newest = [], []
                self._emit.log(
                    "Warning: not even one validation row fits in memory during training. From "
                    "now on the validation loss is not measured."
                )
                return None

    def _try(
        self, loaded: Loaded, micro_batch: int, *, insist: bool
    ) -> tuple[list[float] | None, str | None]:
        """The rows' losses (None: a stop was asked for), or what memory said when it ran out."""
        device = next(loaded.model.parameters()).device
        means: list[float] = []
        try:
            with torch.no_grad(), loaded.computing():
                for start in range(0, len(self._rows), micro_batch):
                    if self._emit.stopping and not insist:
                        return None, None
                    batch = loaded.lay_out(self._rows[start : start + micro_batch]).to(device)
                    losses = loaded.losses(batch).double().cpu()
                    means += [float(part.mean()) for part in losses.split(list(batch.answers))]
        except (RuntimeError, MemoryError) as error:
            if not is_exhaustion(error):
                raise
            return None, str(error) or "no memory"
        return means, None
