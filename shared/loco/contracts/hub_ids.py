"""Names on a model hub: `owner/name` and nothing else.

A bare word is something else to the hub's libraries: `json`, `csv` and `pandas` are loaders of files in
the working directory (the last one unpickles them, which runs code), and any folder's name is that folder.
"""

import re

from loco.contracts.errors import InvalidRequest

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}/{_PART}")
#: Data sets that the hub knew without an owner, and where they are now.
_MOVED = {"gsm8k": "openai/gsm8k", "squad": "rajpurkar/squad", "mmlu": "cais/mmlu"}


def check_hub_id(name: str, *, param: str, what: str = "data set", hint: str | None = None) -> str:
    """The name, shown to be one of a hub's and of nothing on this machine.

    Args:
        name: as a request, recipe or catalog has it.
        param: the field it stands in.
        what: is named so: `data set` or `model`.
        hint: what else the field may hold.

    Raises:
        InvalidRequest: it is no `owner/name`.
    """
    if _ID.fullmatch(name) and ".." not in name and "--" not in name:
        return name
    fix = f"Write {_MOVED[name]!r}. " if name in _MOVED else ""
    other = hint or "Ids have an owner, like openai/gsm8k; for a file use source kind jsonl."
    raise InvalidRequest(
        f"{param}: {name!r:.200} is not the id of a hub {what}, which is owner/name.",
        param=param,
        hint=fix + other,
    )
