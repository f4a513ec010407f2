"""What a run has done so far, step by step, and what is told of it."""

import math
import statistics
import time
from collections.abc import Sequence

from loco.contracts.plans import Plan
from loco.contracts.results import LoggedStep
from loco.stage.program import Emitter
from loco_trainer.loop.parts import Part
from loco_trainer.loop.schedule import diverged
from loco_trainer.loop.validation import Validation
from loco_trainer.machine.memory import peak_gpu_gb


class Journal:
    """The steps done."""

    def __init__(self, parts: Sequence[Part], validation: Validation, emit: Emitter) -> None:
        """Nothing done yet.

        Args:
            parts: of the run, in order.
            validation: its newest loss is told too.
            emit: hears progress.
        """
        self._validation = validation
        self._emit = emit
        #: Steps of the whole run.
        self.total = parts[-1].end
        self._last = parts[-1]
        self.log: list[LoggedStep] = []
        #: Seconds of the steps of this attempt by part, in order.
        self.seconds: dict[str, list[float]] = {part.name: [] for part in parts}
        #: Tokens of this attempt's steps, padding excluded.
        self.tokens = 0
        #: Wall-clock moment (`time.time`) at which the first step was done, as if nothing had been
        #: measured before; None before it.
        self.first_step_at: float | None = None

    @property
    def done(self) -> int:
        """Steps done."""
        return len(self.log)

    def book(self, step: LoggedStep, *, tokens: int, seconds: float) -> None:
        """Books a step.

        Args:
            step: the next one.
            tokens: it computed, padding excluded.
            seconds: it took.
        """
        self.first_step_at = self.first_step_at or time.time() - self._validation.seconds
        self.log.append(step)
        self.seconds[step.part].append(seconds)
        self.tokens += tokens

    def tell(self, part: Part, plan: Plan, *, tokens: int) -> None:
        """Tells of the newest step.

        Args:
            part: the step is of.
            plan: gives the time of a part that has not begun.
            tokens: of the step.
        """
        step, seconds = self.log[-1], self.seconds[part.name]
        left = statistics.fmean(seconds) * (part.end - self.done)
        if part is not self._last:
            left += plan.preference_seconds
        self._emit.progress(
            last=self.done >= self.total,
            message=part.name,
            step=self.done,
            total_steps=self.total,
            percent=self.percent,
            epoch=step.epoch,
            loss=step.loss,
            validation_loss=self._validation.newest_loss,
            validation_epoch=self._validation.newest_epoch,
            lowest_validation_loss=self._validation.lowest_loss,
            learning_rate=step.learning_rate,
            grad_norm=step.grad_norm,
            tokens_per_second=round(tokens / max(seconds[-1], 1e-9), 1),
            gpu_memory_gb=round(peak_gpu_gb(), 3),
            eta_seconds=round(left, 1),
        )

    def tell_measuring(self, what: str, epoch: float) -> None:
        """Tells that something is measured between two steps.

        Args:
            what: is measured, for people.
            epoch: passes over the rows.
        """
        self._emit.progress(
            last=True,
            message=what,
            step=self.done,
            total_steps=self.total,
            percent=self.percent,
            epoch=round(epoch, 4),
            validation_loss=self._validation.newest_loss,
            validation_epoch=self._validation.newest_epoch,
            lowest_validation_loss=self._validation.lowest_loss,
        )

    @property
    def percent(self) -> float:
        """Part of the steps done, 0 to 100."""
        return round(100 * self.done / self.total, 2)


def logged(
    part: Part, number: int, epoch: float, rate: float, figures: Sequence[float], *, scaled: bool
) -> LoggedStep:
    """A step as it is logged.

    Args:
        part: it is of.
        number: of the run's steps.
        epoch: passes over the part's data.
        rate: learning rate.
        figures: those of the part's passes, and the gradient's norm.
        scaled: whether the loss is scaled, so that an overflow skips a step and is no failure.

    Raises:
        TrainingFailed: a figure is not a number.
    """
    loss, *pairs, norm = figures
    if not (math.isfinite(loss) and (math.isfinite(norm) or scaled)):
        raise diverged(
            f"The loss or its gradient is not a number at step {number} "
            f"(loss {loss}, gradient norm {norm}).",
            field=part.rate_field,
        )
    accuracy, margin = pairs or (None, None)
    return LoggedStep(
        step=number,
        part=part.name,
        epoch=round(epoch, 4),
        loss=loss,
        learning_rate=rate,
        grad_norm=norm if math.isfinite(norm) else None,
        accuracy=accuracy,
        margin=margin,
    )
