"""The learning rate of each optimizer step."""

import math

from loco.contracts.errors import TrainingFailed
from loco.contracts.specs import TrainSpec


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


def diverged(message: str, *, field: str = "train.learning_rate") -> TrainingFailed:
    """A loss that is no number, as an error that says what to change.

    Args:
        message: what was seen.
        field: of the recipe that gives the learning rate.
    """
    data = "preference_data" if "preference" in field else "training_data"
    return TrainingFailed(
        message,
        param=field,
        hint=f"Lower {field} (try a tenth) or raise train.warmup_ratio, and look for odd rows "
        f"in {data}.jsonl.",
    )
