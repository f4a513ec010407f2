"""What plans that were tried before teach about memory: how far the model was off, and what ran out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from loco.contracts.plans import Device, Plan, PlanAttempt
from loco.planning.ways import Way, WayLike, kind_of

#: Newest tries that a factor is the median of.
_TRIES = 5
#: A card with so much more free memory than then (a program has ended) may try again what ran out.
_MORE_FREE = 1.02
#: Two figures of one plan may differ by so much, as its memory and its factor are stored rounded.
_ROUNDING_GB = 0.005


@dataclass(frozen=True)
class Lessons:
    """Tries of one base model, newest first; none: the model stands as it is."""

    attempts: tuple[PlanAttempt, ...] = ()

    def factor(self, way: WayLike, device: Device, *, on_pairs: bool = False) -> float:
        """Measured peak over the model's, of finished tries of this kind on this device; else 1.

        A try of a part of the steps may not have met the longest rows: it can raise the figure,
        never lower it. One that began on pairs says nothing of rows.

        Args:
            way: the way.
            device: what it is tried on.
            on_pairs: it trains on pairs, not on rows.
        """
        ratios = [
            ratio
            for done in _finished(self._on(way, device))
            if done.peak_gb > 0  # a CPU's is not measured
            and kind_of(done.plan) == kind_of(way)
            and (on_pairs or not done.of_pairs)
            and (modelled := done.modelled_gb) > 0
            and ((ratio := done.peak_gb / modelled) > 1 or done.whole)
        ]
        return median(ratios[:_TRIES]) if ratios else 1.0

    def ran_out(
        self, way: WayLike, modelled_gb: float, device: Device, *, on_pairs: bool = False
    ) -> bool:
        """Whether this way, or one that the model takes for no larger, ran out of memory here.

        What another program caused is forgotten: a newer try that was no smaller has finished in
        the memory that was free then. Rows and pairs are told apart: a pass of one says little of
        the other's.

        Args:
            way: the way.
            modelled_gb: its peak by the model alone, 10^9 bytes.
            device: with what is free now; more than then, and the way may be tried again.
            on_pairs: it trains on pairs, not on rows.
        """
        tries = self._on(way, device)
        return any(
            attempt.outcome == "out_of_memory"
            and attempt.ended_on_pairs == on_pairs
            and modelled_gb >= _modelled_gb(attempt.plan, on_pairs=on_pairs) - _ROUNDING_GB
            and device.free_gb <= (attempt.plan.free_gb or device.free_gb) * _MORE_FREE
            and not _held_since(attempt.plan, tries[:index], on_pairs=on_pairs)
            for index, attempt in enumerate(tries)
        )

    def _on(self, way: WayLike, device: Device) -> list[PlanAttempt]:
        return [
            attempt
            for attempt in self.attempts
            if attempt.plan.device == device.name
            and attempt.plan.engine == way.engine
            and attempt.plan.memory_gb > 0
        ]


@dataclass(frozen=True)
class _Finished:
    """A try that finished, with the parts before it of a run that was resumed."""

    plan: Plan
    #: Whether it began with the first step.
    whole: bool
    #: Whether it had steps on pairs alone.
    of_pairs: bool
    peak_gb: float

    @property
    def modelled_gb(self) -> float:
        """The peak of its steps by the model alone."""
        if self.of_pairs:
            return _modelled_gb(self.plan, on_pairs=True)
        return self.plan.memory_gb / self.plan.memory_factor


def _finished(tries: Sequence[PlanAttempt]) -> Iterator[_Finished]:
    for index, last in enumerate(tries):
        if last.outcome == "finished":
            parts = _parts(tries[index:])
            yield _Finished(
                plan=last.plan,
                whole=parts[-1].first_step <= 1,
                of_pairs=parts[-1].began_on_pairs,
                peak_gb=max(part.peak_memory_gb for part in parts),
            )


def _parts(tries: Sequence[PlanAttempt]) -> list[PlanAttempt]:
    """The first try and, of a run that was resumed, the same way's parts before it; newest first."""
    parts = [tries[0]]
    for earlier in tries[1:]:
        if (
            earlier.outcome != "stopped"
            or earlier.last_step != parts[-1].first_step - 1
            or Way.of(earlier.plan) != Way.of(tries[0].plan)
        ):
            break
        parts.append(earlier)
    return parts


def _held_since(plan: Plan, newer: Sequence[PlanAttempt], *, on_pairs: bool) -> bool:
    """Whether a newer try that was no smaller finished in the memory that was free for this plan."""
    least = _modelled_gb(plan, on_pairs=on_pairs) - _ROUNDING_GB
    return any(
        done.whole
        and _modelled_gb(done.plan, on_pairs=on_pairs) >= least
        and (plan.free_gb is None or done.peak_gb <= plan.free_gb)
        for done in _finished(newer)
    )


def _modelled_gb(plan: Plan, *, on_pairs: bool) -> float:
    """The peak of a part by the model alone, to `_ROUNDING_GB`; 0 on pairs where there are none.

    Plans of older records say the larger of the two alone.
    """
    if on_pairs and plan.pairs is None:
        return 0.0
    own = plan.pairs_gb if on_pairs else plan.rows_gb
    return plan.memory_gb / plan.memory_factor if own is None else own
