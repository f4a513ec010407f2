"""Which training of a sweep is best, and which is not worth its end."""

import statistics
from collections.abc import Iterable, Sequence

from loco.contracts.sweeps import PointStatus, RankBy, SweepPoint

#: A median of fewer others says little; Ray Tune's MedianStoppingRule asks for as many.
LEAST_OTHERS = 3
_SAME_EPOCH = 1e-3
_LAST = (PointStatus.FAILED, PointStatus.CANCELLED)


def figure(point: SweepPoint, rank_by: RankBy) -> float | None:
    """The loss that decides; None: it was not measured."""
    return point.validation_loss if rank_by is RankBy.VALIDATION_LOSS else point.train_loss


def ranked(points: Sequence[SweepPoint], rank_by: RankBy) -> tuple[SweepPoint, ...]:
    """The points in their order, those that ended with their ranks.

    The lowest loss is first; of equal ones that of fewer steps, then the first. Stopped points come
    behind those that trained to their end, what has no such loss behind them, failed ones last.
    """
    ended = [point for point in points if point.status.is_terminal]

    def place(point: SweepPoint) -> tuple[int, float, int, int]:
        loss = figure(point, rank_by)
        late = 3 if point.status in _LAST else 2 if loss is None else 0
        if not late and point.status is PointStatus.STOPPED:
            late = 1
        return late, loss if loss is not None and late < 2 else 0.0, _steps(point), point.number

    ranks = {point.number: n for n, point in enumerate(sorted(ended, key=place), start=1)}
    return tuple(p.model_copy(update={"rank": ranks.get(p.number)}) for p in points)


def best(points: Sequence[SweepPoint], rank_by: RankBy) -> SweepPoint | None:
    """The point to go on with; None: no training that succeeded has a loss to rank by."""
    able = (
        point
        for point in ranked(points, rank_by)
        if point.status is PointStatus.SUCCEEDED and figure(point, rank_by) is not None
    )
    return min(able, key=lambda point: point.rank or 0, default=None)


def hopeless(point: SweepPoint, others: Iterable[SweepPoint]) -> str | None:
    """Why a running training is not worth its end; None: it may be.

    The median stopping rule of Google Vizier (Golovin et al., KDD 2017): its lowest loss so far is worse
    than the median of the others after as many passes. Theirs are taken as they were then, not as the
    mean of all until then: there is one loss a pass, and the early high ones would let everybody through.

    Args:
        point: a training that runs.
        others: those whose losses compare with its own; the ones that trained to their end count.
    """
    newest = point.validations[-1] if point.validations else None
    if newest is None or newest.epoch == 0:
        return None
    ended = [o for o in others if o.status is PointStatus.SUCCEEDED and o.number != point.number]
    losses = [
        then.loss
        for other in ended
        for then in other.validations
        if abs(then.epoch - newest.epoch) < _SAME_EPOCH
    ]
    last = max((v.epoch for o in ended for v in o.validations), default=0.0)
    if len(losses) < LEAST_OTHERS or newest.epoch > last - _SAME_EPOCH:
        return None  # at the end there is nothing left to spare
    median = statistics.median(losses)
    lowest = newest.loss if point.lowest_validation_loss is None else point.lowest_validation_loss
    if not lowest > median:
        return None
    passes = "1 pass" if newest.epoch == 1 else f"{newest.epoch:g} passes"
    return (
        f"Stopped early: its lowest validation loss in {passes} is {lowest:.4f}. The median of "
        f"{len(losses)} others was {median:.4f} at that point."
    )


def _steps(point: SweepPoint) -> int:
    return point.total_steps or 0
