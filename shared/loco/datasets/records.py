"""The records of the store of uploads, a JSON file each."""

import logging
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from loco.contracts.base import Contract

logger = logging.getLogger(__name__)

_Record = TypeVar("_Record", bound=Contract)


def entries(folder: Path, pattern: str) -> list[Path]:
    """The files of records in a folder that need not be there, by name."""
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def read(model: type[_Record], path: Path) -> _Record | None:
    """A record; None: it was removed meanwhile, or is none, which the log says."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.error("%s is not a record of a data set: %s", path, error.errors()[0]["msg"])
        return None
