"""Which training of a sweep is best, and which is stopped early."""

import pytest

from loco.contracts.sweeps import EpochLoss, PointStatus, RankBy, SweepPoint
from loco.grading.sweeps import best, hopeless, ranked


def point(number: int, status: str = "succeeded", *losses: float, **fields) -> SweepPoint:
    """A point with its validation losses after 0, 1, 2, … passes."""
    told = [EpochLoss(epoch=n, loss=loss) for n, loss in enumerate(losses)]
    if status == "running":
        told = told[-1:]
    known = {"validation_loss": losses[-1] if losses else None, "validations": tuple(told)}
    return SweepPoint(
        number=number,
        overrides={},
        status=PointStatus(status),
        **known | fields,
    )


def ranks(*points: SweepPoint, by: RankBy = RankBy.VALIDATION_LOSS) -> list[int | None]:
    return [p.rank for p in ranked(points, by)]


def test_the_lowest_loss_is_first_and_what_did_not_end_well_behind():
    assert ranks(
        point(1, "succeeded", 2.0, 0.9),
        point(2, "failed"),
        point(3, "stopped", 2.0, 0.1),
        point(4, "succeeded", 2.0, 0.7),
        point(5, "cancelled", 2.0, 0.2),
        point(6, "running", 2.0, 0.1),
        point(7, "succeeded"),
    ) == [2, 5, 3, 1, 6, None, 4]


def test_of_equal_losses_the_cheaper_then_the_first():
    equal = [
        point(n, "succeeded", 1.0, 0.5, total_steps=steps)
        for n, steps in ((1, 40), (2, 20), (3, 20))
    ]
    assert ranks(*equal) == [3, 1, 2]


def test_rank_by_the_training_loss():
    points = (
        point(1, "succeeded", 1.0, 0.5, train_loss=0.4),
        point(2, "succeeded", 1.0, 0.9, train_loss=0.1),
    )
    assert ranks(*points, by=RankBy.TRAIN_LOSS) == [2, 1]
    chosen = best(points, RankBy.TRAIN_LOSS)
    assert chosen is not None
    assert chosen.number == 2


def test_no_best_without_a_training_that_ended_with_a_loss():
    assert best((point(1, "failed"), point(2, "stopped", 2.0, 0.1)), RankBy.VALIDATION_LOSS) is None
    assert best((point(1, "succeeded"),), RankBy.VALIDATION_LOSS) is None


ENDED = (
    point(1, "succeeded", 2.0, 0.9, 0.5),
    point(2, "succeeded", 2.0, 0.8, 0.6),
    point(3, "succeeded", 2.0, 0.7, 0.4),
)


def test_worse_than_the_median_after_as_many_passes_is_stopped():
    reason = hopeless(point(4, "running", 2.0, 0.85), ENDED)
    assert reason == (
        "Stopped early: its lowest validation loss in 1 pass is 0.8500. The median of 3 others was "
        "0.8000 at that point."
    )


def test_what_was_better_before_goes_on():
    """With train.select: best that is the adapter it keeps."""
    risen = point(4, "running", 2.0, 0.95, lowest_validation_loss=0.75)
    assert hopeless(risen, ENDED) is None


@pytest.mark.parametrize(
    ("losses", "others"),
    [
        pytest.param((2.0, 0.8), ENDED, id="equal to the median"),
        pytest.param((2.5,), ENDED, id="nothing trained yet"),
        pytest.param((), ENDED, id="nothing measured"),
        pytest.param((2.0, 0.9, 0.9), ENDED, id="at its end"),
        pytest.param((2.0, 0.95), ENDED[:2], id="too few others"),
        pytest.param(
            (2.0, 0.95), (*ENDED[:2], point(3, "stopped", 2.0, 0.7)), id="one of them stopped"
        ),
    ],
)
def test_everything_else_goes_on(losses, others):
    assert hopeless(point(4, "running", *losses), others) is None
