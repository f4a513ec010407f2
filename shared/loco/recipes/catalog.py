"""adapters/base_models.yaml: the base models a recipe may name."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from loco.contracts.errors import InvalidRequest, UnknownBaseModel
from loco.contracts.hub_ids import check_hub_id
from loco.contracts.specs import BaseModelSpec
from loco.recipes.documents import read_yaml, validated
from loco.settings import CATALOG


def load_catalog(adapters_dir: Path) -> dict[str, BaseModelSpec]:
    """The base models that may be used, by name.

    Raises:
        InvalidRequest: an entry is wrong; names it and the field.
    """
    return {name: _entry(name, value) for name, value in read_yaml(adapters_dir / CATALOG).items()}


def base_model(adapters_dir: Path, name: str) -> BaseModelSpec:
    """The base model of a name.

    Raises:
        UnknownBaseModel: the catalog has none of that name.
    """
    catalog = load_catalog(adapters_dir)
    if name not in catalog:
        raise UnknownBaseModel(
            f"No base model {name!r}. Base models here: {', '.join(sorted(catalog))}.",
            param="base_model",
            hint=_hint(name, catalog),
        )
    return catalog[name]


def _hint(name: str, catalog: Mapping[str, BaseModelSpec]) -> str:
    near = get_close_matches(name.lower(), catalog, 1)
    guess = f"Did you mean {near[0]}? " if near else ""
    return f"{guess}Name one of them (`loco bases`), or add it to {CATALOG}."


def _entry(name: str, value: Any) -> BaseModelSpec:
    # what is no mapping is left for validation to refuse
    named = {"name": name, **value} if isinstance(value, Mapping) else value
    entry = validated(BaseModelSpec, named, where=f"{CATALOG}: {name}")
    # here and not in the contract, which also reads the jobs of earlier releases
    if entry.system is not None and not entry.system.strip():
        raise InvalidRequest(
            f"{CATALOG}: {name}: system is empty. Training would use it, but Ollama would leave "
            "it out.",
            param="system",
            hint="Remove it to use the chat template's own, or write one.",
        )
    if entry.kind == "hub":
        for field in ("train", "merge"):
            check_hub_id(
                getattr(entry, field),
                param=field,
                what=f"model ({CATALOG}: {name})",
                hint="Write owner/name, or kind: folder for a folder on this machine.",
            )
    return entry
