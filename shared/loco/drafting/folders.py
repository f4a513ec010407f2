"""An adapter's folder on a laptop: its recipe, and the data files that the recipe names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from loco.contracts.errors import DataError, InvalidRequest
from loco.drafting.lines import line_of
from loco.recipes.data_files import dataset_path
from loco.recipes.default_sets import FILE
from loco.recipes.documents import LARGEST_BYTES, not_yaml, parsed_yaml, validated
from loco.recipes.resolve import RECIPE, Recipe


def recipe_of(folder: Path, name: str) -> str:
    """The text of a folder's recipe.

    Raises:
        InvalidRequest: there is none, it cannot be used, or is that of another adapter.
    """
    path = folder / RECIPE
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InvalidRequest(f"{path} has more than {LARGEST_BYTES:,} bytes.", param="--from")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"There is no recipe {path}.",
            param="--from",
            hint=f"`loco new {name} --data rows.csv` writes one. Or give its folder with --from.",
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text.", param="--from") from error
    recipe = parsed(text, str(path))
    if recipe.name != name:
        raise InvalidRequest(
            f"{path}: name is {recipe.name!r}, not {name!r}.",
            param="name",
            hint="Make them equal.",
        )
    return text


def parsed(text: str, where: str) -> Recipe:
    """A recipe's text as a recipe.

    Raises:
        InvalidRequest: it is no YAML, or a field is wrong.
    """
    try:
        document = parsed_yaml(text)
    except yaml.YAMLError as error:
        raise not_yaml(error, where=where, param="recipe") from error
    try:
        return validated(Recipe, document, where=where)
    except InvalidRequest as error:
        line = line_of(text, error.param or "")
        at = f"{where}, line {line}" if line else where
        message = at + error.message.removeprefix(where)
        raise InvalidRequest(message, param=error.param, hint=error.hint) from error


def files_of(folder: Path, text: str) -> dict[str, Path]:
    """The files beside a recipe that its sources of kind jsonl name, in any profile.

    With them goes the eval set of a recipe that names none.

    Raises:
        DataError: one is not there, or lies elsewhere.
    """
    recipe = parsed(text, str(folder / RECIPE))
    found = {}
    for path in _paths(recipe.model_dump(mode="json", by_alias=True)):
        if "/" in path:
            raise DataError(
                f"{path!r} is in another folder. Only files beside {RECIPE} can be pushed.",
                param="path",
                hint=f"Put it beside {RECIPE}, or upload it with `loco data push` and name it "
                "as {kind: dataset, dataset: NAME}.",
            )
        found[path] = dataset_path(path, folder)
    if recipe.eval.get("sets") is None and (folder / FILE).is_file():
        found[FILE] = dataset_path(FILE, folder)
    return found


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("kind") == "jsonl" and isinstance(value.get("path"), str):
            yield value["path"]
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)
