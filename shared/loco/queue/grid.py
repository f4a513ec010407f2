"""From the fields that a sweep varies to its points, each with its resolved train spec."""

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loco.contracts.errors import InvalidRequest
from loco.contracts.fields import field_paths, nearest
from loco.contracts.requests import JobRequest
from loco.contracts.specs import TrainSpec
from loco.contracts.stages import Stage
from loco.contracts.sweeps import MOST_POINTS, SweepRequest
from loco.recipes.resolve import merge, resolve

SEED = "train.seed"
_SECTION = f"{Stage.TRAIN}."

Point = Mapping[str, Any]


def points_of(adapters_dir: Path, request: SweepRequest) -> list[dict[str, Any]]:
    """The fields that each point sets, in the order of the grid; seeds vary fastest.

    Raises:
        InvalidRequest: fewer than two points or more than `MOST_POINTS`, a field that is not train's
            or has no single place, or a first point that does not resolve.
    """
    _check_fields(request)
    count = request.seeds
    for values in request.grid.values():
        count *= len(values)
    if not 1 < count <= MOST_POINTS:
        parts = [f"{len(values)} of {field}" for field, values in request.grid.items()]
        parts += [f"{request.seeds} seeds"] if request.seeds > 1 else []
        raise InvalidRequest(
            f"This sweep has {count} points ({' x '.join(parts) or 'nothing varies'}). It must "
            f"have 2 to {MOST_POINTS}.",
            param="grid",
            hint=f"Leave out values until at most {MOST_POINTS} combinations remain."
            if count > 1
            else "Give a field of train several values, like `--set train.learning_rate=1e-4,2e-4`, or "
            "ask for `--seeds 3`.",
        )
    combined = [
        dict(zip(request.grid, values, strict=True))
        for values in itertools.product(*request.grid.values())
    ]
    if request.seeds == 1:
        return combined
    first = resolve(adapters_dir, job_request(request, combined[0])).train.seed
    return [point | {SEED: first + n} for point in combined for n in range(request.seeds)]


def trains_of(
    adapters_dir: Path, request: SweepRequest, points: list[dict[str, Any]]
) -> tuple[TrainSpec, ...]:
    """The train spec of each point.

    Raises:
        InvalidRequest: one does not resolve, or two are the same training; `param` names the field.
        UnknownAdapter, UnknownProfile, UnknownBaseModel: see `recipes.resolve`.
    """
    trains: list[TrainSpec] = []
    for point in points:
        train = resolve(adapters_dir, job_request(request, point)).train
        if train in trains:
            twin = trains.index(train)
            raise InvalidRequest(
                f"Points {twin + 1} and {len(trains) + 1} are the same training: {_words(points[twin])} "
                f"and {_words(point)}.",
                param=next(iter(point)),
                hint="Name each value once.",
            )
        trains.append(train)
    return tuple(trains)


def job_request(request: SweepRequest, point: Point) -> JobRequest:
    """The request of a whole job with a point's fields."""
    train = request.train
    for field, value in point.items():
        names = reversed(field.removeprefix(_SECTION).split("."))
        train = merge(train, functools.reduce(lambda inner, name: {name: inner}, names, value))
    fields = {
        name: getattr(request, name) for name in JobRequest.model_fields if hasattr(request, name)
    }
    return JobRequest.model_construct(**fields | {"train": train})


def _check_fields(request: SweepRequest) -> None:
    for field, values in request.grid.items():
        if not field.startswith(_SECTION) or not all(field.split(".")):
            meant = None
            if field.partition(".")[0] not in set(Stage):
                meant = nearest(field, [_SECTION + path for path in field_paths(TrainSpec)])
            raise InvalidRequest(
                f"{field} has {len(values)} values, but a sweep can only vary fields of train. "
                "All its trainings share one prepare, and only the best is exported.",
                param=field,
                hint=f"Did you mean {meant}?"
                if meant
                else f"Give {field} one value (a text with a comma in double quotes), or start a sweep "
                "for each of its values.",
            )
        outer = next((other for other in request.grid if field.startswith(f"{other}.")), None)
        if outer is not None:
            raise InvalidRequest(
                f"{field} is a part of {outer}, but the sweep varies both.",
                param=field,
                hint=f"Put the values of {field} into those of {outer}, or leave {outer} out.",
            )
    if request.seeds > 1 and SEED in request.grid:
        raise InvalidRequest(
            f"seeds and {SEED} both choose the seed.",
            param="seeds",
            hint=f"Leave one of them out. seeds counts up from {SEED}.",
        )


def _words(point: Point) -> str:
    return ", ".join(f"{field}={value!r:.40}" for field, value in point.items())
