"""Where in a recipe's text a fault is: its line, and the profile where only that one has it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from loco.contracts.errors import LocoError
from loco.contracts.specs import JobSpec
from loco.recipes.resolve import RECIPE, resolve_recipe


def looked_through(
    adapters_dir: Path, name: str, profiles: Iterable[str], text: str
) -> Iterator[tuple[str, JobSpec | LocoError]]:
    """Each profile with what it resolves to, or with its fault and the line of that.

    A fault of the recipe itself comes once, not with every profile.

    Args:
        adapters_dir: recipes and catalog.
        name: of the adapter.
        profiles: of its recipe, `default` first.
        text: of the recipe.
    """
    told: set[tuple[int | None, str]] = set()
    for number, profile in enumerate(profiles):
        try:
            yield profile, resolve_recipe(adapters_dir, name, profile)
        except LocoError as error:
            own = line_of(text, error.param or "", profile)
            line = own or line_of(text, error.param or "")
            message = error.message.removeprefix(f"{name}/{RECIPE}: ")
            fault = (line, message)
            if own is None and fault in told:
                continue
            told.add(fault)
            # the first one has no fault, so this profile has it by what it changes
            whose = f" (profile {profile})" if own or number else ""
            at = f"{RECIPE}, line {line}" if line else RECIPE
            said = f"{at}{whose}: {message}"
            yield profile, type(error)(said, param=error.param, hint=error.hint)


def line_of(text: str, field_name: str, profile: str | None = None) -> int | None:
    """The line of a recipe on which a field stands, or the part of it that does, from 1.

    Args:
        text: of the recipe.
        field_name: as errors name it, `train.lora.r`.
        profile: in whose section to look; none: in the recipe's own.
    """
    words = [word for word in field_name.split(".") if word]
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if profile is None:
        return _line(root, words, least=max(1, len(words) - 1))
    # what the profile leaves to the recipe is no fault of the profile's
    whole = _line(root, words, least=len(words)) is not None
    least = 2 + (len(words) if whole else max(1, len(words) - 1))
    return _line(root, ["profiles", profile, *words], least=least)


def _line(node: Any, words: list[str], *, least: int) -> int | None:
    """The line of the last of these words that is there, if at least so many are."""
    line, depth = None, 0
    for word in words:
        if not isinstance(node, yaml.MappingNode):
            break
        pair = next((p for p in node.value if p[0].value == word), None)
        if pair is None:
            break
        line, node, depth = pair[0].start_mark.line + 1, pair[1], depth + 1
    return line if depth >= least else None
