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

    def factor(self, way: WayLike, device: Device) -> float:
        """Measured peak over the model's, of finished tries of this kind on this device; else 1.

        A try of a part of the steps may not have met the longest rows: it can raise the figure,
        never lower it.
        """
        ratios = [
            ratio
            for whole, peak, plan in _finished(self._on(way, device))
            if peak > 0  # a CPU's is not measured
            and kind_of(plan) == kind_of(way)
            and ((ratio := peak / _modelled_gb(plan)) > 1 or whole)
        ]
        return median(ratios[:_TRIES]) if ratios else 1.0

    def ran_out(self, way: WayLike, modelled_gb: float, device: Device) -> bool:
        """Whether this way, or one that the model takes for no larger, ran out of memory here.

        What another program caused is forgotten: a newer try that was no smaller has finished in
        the memory that was free then.

        Args:
            way: the way.
            modelled_gb: its peak by the model alone, 10^9 bytes.
            device: with what is free now; more than then, and the way may be tried again.
        """
        tries = self._on(way, device)
        return any(
            attempt.outcome == "out_of_memory"
            and modelled_gb >= _modelled_gb(attempt.plan) - _ROUNDING_GB
            and device.free_gb <= (attempt.plan.free_gb or device.free_gb) * _MORE_FREE
            and not _held_since(attempt.plan, tries[:index])
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


def _finished(tries: Sequence[PlanAttempt]) -> Iterator[tuple[bool, float, Plan]]:
    """Of tries that finished: whether they began with the first step, their peak and plan."""
    for index, last in enumerate(tries):
        if last.outcome == "finished":
            parts = _parts(tries[index:])
            yield parts[-1].first_step <= 1, max(p.peak_memory_gb for p in parts), last.plan


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


def _held_since(plan: Plan, newer: Sequence[PlanAttempt]) -> bool:
    """Whether a newer try that was no smaller finished in the memory that was free for this plan."""
    return any(
        whole
        and _modelled_gb(held) >= _modelled_gb(plan) - _ROUNDING_GB
        and (plan.free_gb is None or peak <= plan.free_gb)
        for whole, peak, held in _finished(newer)
    )


def _modelled_gb(plan: Plan) -> float:
    """The peak by the model alone, to `_ROUNDING_GB`."""
    return plan.memory_gb / plan.memory_factor
