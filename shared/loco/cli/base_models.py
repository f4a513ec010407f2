"""The catalog of base models that a recipe is looked at with: this machine's, or the server's."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
import yaml

from loco.cli.console import client
from loco.client.client import Client
from loco.contracts.errors import LocoError, UnknownBaseModel
from loco.recipes.catalog import base_model
from loco.settings import CATALOG, Settings


@contextmanager
def base_models(
    context: typer.Context, settings: Settings
) -> Iterator[tuple[Path | None, LocoError | None]]:
    """The base models that a recipe may name: this machine's, else the server's, else why not."""
    here = settings.adapters_dir / CATALOG
    if here.is_file():
        yield here, None
        return
    try:
        with client(context) as loco:
            entries = _entries(loco)
    except LocoError as error:  # told by who asked
        yield None, error
        return
    with _written(entries) as catalog:
        yield catalog, None


@contextmanager
def servers_base_models(loco: Client) -> Iterator[Path | None]:
    """The catalog of a server; none where it is of an earlier release, which does not send it."""
    with _written(_entries(loco)) as catalog:
        yield catalog


def check_base(catalog: Path, name: str, option: str) -> None:
    """Raises UnknownBaseModel unless a catalog has the base that an option names."""
    try:
        base_model(catalog.parent, name)
    except UnknownBaseModel as error:
        raise UnknownBaseModel(error.message, param=option, hint=error.hint) from error


def _entries(loco: Client) -> dict[str, object]:
    return {base["name"]: base.get("entry") for base in loco.bases()["data"]}


@contextmanager
def _written(entries: dict[str, object]) -> Iterator[Path | None]:
    if not all(entries.values()):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CATALOG
        path.write_text(yaml.safe_dump(entries))
        yield path
