"""The fields of contracts by their dotted names, and which of them somebody may have meant."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

#: Levels of contracts in contracts; a job has six.
_DEEPEST = 8
#: Stands for the name of an entry in a mapping.
_ANY = "*"
#: How alike names have to be, 0 to 1: beside each other, and in different sections.
_ALIKE_BESIDE, _ALIKE_ELSEWHERE = 0.6, 0.8
#: Letters of a name that may be looked for inside another.
_LONG = 5


@cache
def field_paths(model: type[BaseModel], depth: int = _DEEPEST) -> tuple[str, ...]:
    """Names of a model's fields and of those below them, as they are written: `lora`, `lora.r`."""
    return tuple(dict.fromkeys(_paths(model, depth)))


def nearest(unknown: str, known: Iterable[str]) -> str | None:
    """The known field that a wrong one may stand for.

    The same name in another place (`learning_rate` for `train.learning_rate`), its initials (`train.lr`),
    one spelt alike, or a part of it (`num_train_epochs`, `rank`); fields beside it first.

    Args:
        unknown: its dotted name.
        known: dotted names; `*` stands for any name in between.
    """
    *parent, name = parts = unknown[:200].split(".")  # what is longer is no slip of the pen
    fields = [path.split(".") for path in known]
    beside = [[*parent, k[-1]] for k in fields if _matches(k[:-1], parent)]
    sections = {tuple(k[:-1]) for k in fields}
    everywhere = beside + sorted(
        (k for k in fields if _ANY not in k and tuple(k) not in sections),
        key=lambda k: (k[0] != parts[0], len(k)),
    )
    ways = (
        (k for k in everywhere if k[-1] == name),
        (k for k in everywhere if "_".join(k).endswith(f"_{name}")),
        (k for k in everywhere if len(name) > 1 and _initials(k[-1]) == name),
        _alike(name, beside, _ALIKE_BESIDE),
        _alike(name, everywhere, _ALIKE_ELSEWHERE),
        sorted(
            (k for k in everywhere if len(k[-1]) >= _LONG and k[-1] in name),
            key=lambda k: -len(k[-1]),
        ),
        (k for k in beside if k[-1].startswith(name[:_LONG]) or k[-1] == name[:1]),
    )
    found = (next((k for k in way if k != parts), None) for way in ways)
    return next((".".join(k) for k in found if k is not None), None)


def _alike(name: str, fields: list[list[str]], cutoff: float) -> Iterator[list[str]]:
    names = {k[-1]: k for k in reversed(fields)}
    yield from (names[n] for n in get_close_matches(name, names, n=1, cutoff=cutoff))


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_") if word)


def _matches(known: list[str], given: list[str]) -> bool:
    return len(known) == len(given) and all(
        k in (_ANY, g) for k, g in zip(known, given, strict=True)
    )


def _paths(model: type[BaseModel], depth: int) -> Iterator[str]:
    for name, field in model.model_fields.items():
        written = field.alias or name
        yield written
        for inner, between in _models(field.annotation):
            if depth:
                yield from (f"{written}.{between}{p}" for p in field_paths(inner, depth - 1))


def _models(annotation: Any, between: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The models of an annotation, and what stands between them and the field: nothing, or `*.`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, between
        return
    origin = getattr(annotation, "__origin__", None)
    if origin is dict:
        between = f"{_ANY}."
    elif isinstance(origin, type) and issubclass(origin, list | tuple):
        return  # their entries have numbers
    for inner in get_args(annotation):
        yield from _models(inner, between)
