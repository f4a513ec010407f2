"""adapters/base_models.yaml: the base models a recipe may name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loco.contracts.errors import UnknownBaseModel
from loco.contracts.specs import BaseModelSpec
from loco.recipes.documents import read_yaml, validated

CATALOG = "base_models.yaml"


def load_catalog(adapters_dir: Path) -> dict[str, BaseModelSpec]:
    """The base models that may be used, by name."""
    entries = read_yaml(adapters_dir / CATALOG)
    return {
        name: validated(BaseModelSpec, _named(name, entry), where=f"{CATALOG}: {name}")
        for name, entry in entries.items()
    }


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
            hint=f"Name one of them, or add it to {CATALOG}.",
        )
    return catalog[name]


def _named(name: str, entry: Any) -> Any:
    """An entry of the catalog with its name; what is no mapping is left for validation to refuse."""
    return {"name": name, **entry} if isinstance(entry, Mapping) else entry
