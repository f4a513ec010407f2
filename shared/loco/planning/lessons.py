"""What plans that were tried before teach about memory: how far the model was off, and what ran out."""

from dataclasses import dataclass
from statistics import median

from loco.contracts.plans import Device, Plan, PlanAttempt
from loco.planning.ways import WayLike, kind_of

#: Newest tries that a factor is the median of.
_TRIES = 5
#: A card with so much more free memory than then (a program has ended) may try again what ran out.
_MORE_FREE = 1.02


@dataclass(frozen=True)
class Lessons:
    """Tries of one base model, newest first; none: the model stands as it is."""

    attempts: tuple[PlanAttempt, ...] = ()

    def factor(self, way: WayLike, device: Device) -> float:
        """Measured peak over the model's, of finished tries of this kind on this device; else 1."""
        ratios = [
            attempt.peak_memory_gb / _modelled_gb(attempt.plan)
            for attempt in self._on(way, device)
            if attempt.outcome == "finished"
            and attempt.peak_memory_gb > 0  # a CPU's is not measured
            and kind_of(attempt.plan) == kind_of(way)
        ]
        return median(ratios[:_TRIES]) if ratios else 1.0

    def ran_out(self, way: WayLike, modelled_gb: float, device: Device) -> bool:
        """Whether this way, or one that the model takes for no larger, ran out of memory here.

        Args:
            way: the way.
            modelled_gb: its peak by the model alone, 10^9 bytes.
            device: with what is free now; more than then, and the way may be tried again.
        """
        return any(
            attempt.outcome == "out_of_memory"
            and modelled_gb >= _modelled_gb(attempt.plan)
            and device.free_gb <= (attempt.plan.free_gb or device.free_gb) * _MORE_FREE
            for attempt in self._on(way, device)
        )

    def _on(self, way: WayLike, device: Device) -> list[PlanAttempt]:
        return [
            attempt
            for attempt in self.attempts
            if attempt.plan.device == device.name
            and attempt.plan.engine == way.engine
            and attempt.plan.memory_gb > 0
        ]


def _modelled_gb(plan: Plan) -> float:
    """The peak by the model alone, to the precision of a plan."""
    return round(plan.memory_gb / plan.memory_factor, 3)
