"""YAML files of the adapters folder, read and validated with errors that name the file and field."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest, invalid

#: libyaml where PyYAML was built with it: the pure Python parser takes most of a submit's time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        InvalidRequest: it is missing, no valid YAML, or no mapping.
    """
    try:
        document = yaml.load(path.read_text(), Loader=_LOADER)  # noqa: S506 (a safe loader)
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"{path.name} is missing in {path.parent}.",
            hint="Point LOCO_ADAPTERS_DIR at a folder like the repository's adapters/.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path}: the top level must be a mapping.")
    return document


_ModelT = TypeVar("_ModelT", bound=Contract)


def validated(model: type[_ModelT], document: Any, *, where: str) -> _ModelT:
    """A document as a model.

    Args:
        model: the contract it has to fulfil.
        document: what was read.
        where: named in front of the field at fault.

    Raises:
        InvalidRequest: `param` names the field at fault.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid(error, document, where=where) from error
