"""Names and IDs of data sets."""

import re
from pathlib import PurePath

from loco.contracts.datasets import ID_PATTERN, NAME_PATTERN
from loco.contracts.errors import InvalidRequest


def is_id(text: str) -> bool:
    """Whether it has the form of an ID."""
    return re.fullmatch(ID_PATTERN, text) is not None


def checked_name(name: str) -> str:
    """A name as it may be.

    Raises:
        InvalidRequest: it is a path, an ID, or has other signs.
    """
    if re.fullmatch(NAME_PATTERN, name) is None or is_id(name):
        raise InvalidRequest(
            f"name: {name!r:.120} cannot be the name of a data set.",
            param="name",
            hint="Use up to 100 letters, digits, `.`, `_` and `-`. Start with a letter or digit.",
        )
    return name


def name_of(file: PurePath) -> str:
    """The name a file gives its data set."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-")[:100]
    return kept or "data"
