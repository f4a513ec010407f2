"""The parts of a run: the rows, then (`train.preference`) pairs of a right and a wrong answer.

A part says which steps there are, and what a step computes; `loop.fit` takes them.
"""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from loco.contracts.plans import Plan
from loco.contracts.results import LoggedStep, Preference
from loco.contracts.specs import PreferenceSpec, TrainSpec
from loco.planning.batches import of_pairs, total_steps
from loco.stage.program import Emitter
from loco_trainer.data.batches import step_orders, steps_of
from loco_trainer.data.pairs import Pair, Pairs
from loco_trainer.data.rows import Row
from loco_trainer.engines.loaded import Loaded
from loco_trainer.loop.adapter_state import AdapterState
from loco_trainer.loop.passes import Passes, RowPasses, choose_passes
from loco_trainer.loop.preference import PairPasses, Reference
from loco_trainer.loop.schedule import rate_factor


@dataclass(frozen=True)
class Step:
    """What an optimizer step computes."""

    #: Passes over the part's rows or pairs when the step is done.
    epoch: float
    #: Tokens, padding excluded.
    tokens: int
    #: What its loss is the mean over: answer tokens, or pairs.
    count: int
    #: Each a forward and backward pass, laid out in RAM.
    passes: list[Callable[[], None]]


class Part(ABC):
    """Some of a run's steps, one after the other."""

    name: Literal["training", "preference"]
    #: Field of the recipe that gives the learning rate.
    rate_field: str

    def __init__(self, spec: TrainSpec, *, first: int, size: int) -> None:
        """Sets a part up.

        Args:
            spec: its own recipe, in rows.
            first: steps of the parts before.
            size: rows there are.
        """
        self.spec = spec
        self.first = first
        self.steps = total_steps(spec, size)
        #: The run's step it ends with.
        self.end = first + self.steps

    def rate(self, done: int) -> float:
        """Learning rate of the step after so many of the run."""
        return self.spec.learning_rate * rate_factor(self.spec, self.steps, done - self.first)

    @abstractmethod
    def begin(
        self, loaded: Loaded, adapter: AdapterState, plan: Plan, *, done: int
    ) -> tuple[Passes, Iterator[Step]]:
        """What computes, and the steps that are left after so many of the run, as tensors in RAM."""


class RowsPart(Part):
    """The steps on the rows."""

    name = "training"
    rate_field = "train.learning_rate"

    def __init__(self, spec: TrainSpec, rows: list[Row]) -> None:
        """Sets it up.

        Args:
            spec: the recipe.
            rows: tokenized data.
        """
        super().__init__(spec, first=0, size=len(rows))
        self._rows = rows
        self._steps_per_epoch = -(-len(rows) // spec.step_rows)

    def epoch(self, done: int) -> float:
        """Passes over the rows after so many steps of the run."""
        return min(done, self.end) / self._steps_per_epoch

    def begin(
        self, loaded: Loaded, adapter: AdapterState, plan: Plan, *, done: int
    ) -> tuple[Passes, Iterator[Step]]:
        """See `Part.begin`."""
        passes = choose_passes(
            loaded,
            adapter,
            recorded=plan.cuda_graphs,
            micro_batch=plan.micro_batch,
            longest=plan.max_length,
        )
        return passes, self._laid_out(passes, plan.micro_batch, done)

    def _laid_out(self, passes: RowPasses, size: int, done: int) -> Iterator[Step]:
        spec = self.spec
        steps = steps_of(
            self._rows, step_rows=spec.step_rows, seed=spec.seed, first=done, last=self.end
        )
        for epoch, rows in steps:
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            batches = [passes.lay_out(part) for part in parts]
            yield Step(
                epoch=epoch,
                tokens=sum(batch.tokens for batch in batches),
                count=sum(sum(batch.answers) for batch in batches),
                passes=[partial(passes.run, batch) for batch in batches],
            )


class PairsPart(Part):
    """The steps on pairs, and the reference they begin from."""

    name = "preference"
    rate_field = "train.preference.learning_rate"

    def __init__(self, spec: TrainSpec, given: PreferenceSpec, pairs: Pairs, *, first: int) -> None:
        """Sets it up.

        Args:
            spec: the recipe.
            given: its part on pairs.
            pairs: tokenized data.
            first: steps before it.
        """
        super().__init__(of_pairs(spec, given), first=first, size=2 * len(pairs.pairs))
        self._given = given
        self._pairs: Sequence[Pair] = pairs.pairs
        self._left_out = pairs.left_out
        self.reference = Reference()

    def measure_reference(
        self, loaded: Loaded, adapter: AdapterState, plan: Plan, emit: Emitter
    ) -> bool:
        """Measures the reference with the adapter as it is; False where a stop was asked for."""
        return self.reference.measure(
            PairPasses(loaded, adapter, self._given),
            self._pairs,
            loaded,
            adapter,
            size=plan.pairs or 1,
            emit=emit,
        )

    def begin(
        self, loaded: Loaded, adapter: AdapterState, plan: Plan, *, done: int
    ) -> tuple[Passes, Iterator[Step]]:
        """See `Part.begin`; the reference is known by then."""
        passes = PairPasses(loaded, adapter, self._given)
        return passes, self._laid_out(passes, plan.pairs or 1, done - self.first)

    def _laid_out(self, passes: PairPasses, size: int, done: int) -> Iterator[Step]:
        orders = step_orders(
            [pair.longest for pair in self._pairs],
            step_rows=self._given.batch_size,
            seed=self.spec.seed,
            first=done,
            last=self.steps,
        )
        for epoch, numbers in orders:
            parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            batches = [
                passes.lay_out([self._pairs[n] for n in part], self.reference.of(part))
                for part in parts
            ]
            yield Step(
                epoch=epoch,
                tokens=sum(batch.rows.tokens for batch in batches),
                count=len(numbers),
                passes=[partial(passes.run, batch) for batch in batches],
            )

    def result(self, log: Sequence[LoggedStep], seconds: Sequence[float]) -> Preference | None:
        """What it did; None before its first step.

        Args:
            log: the run's steps.
            seconds: of its own steps in this attempt.
        """
        own = log[self.first :]
        if not own:
            return None
        first, last = own[0], own[-1]
        return Preference(
            pairs=len(self._pairs),
            left_out=self._left_out,
            steps=self.steps,
            first_loss=first.loss,
            last_loss=last.loss,
            first_accuracy=first.accuracy or 0.0,
            last_accuracy=last.accuracy or 0.0,
            margin=last.margin or 0.0,
            step_seconds=round(statistics.median(seconds), 5) if seconds else 0.0,
            reference_seconds=round(self.reference.seconds, 3),
            seconds=round(self.reference.seconds + sum(seconds), 3),
        )
