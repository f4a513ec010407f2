"""adapters/registry.yaml: the versions of every adapter, for people to read.

    adapters:
      math:
        model: locollm-math
        version: 3            # the one `locollm-math:latest` points to
        highest: 4            # the last number given: that of a deleted version is never given again
        …
        history: [version 3, version 2, version 1]

The truth is in the ledger; a worker writes this copy of it after each change, under a lock and by
renaming, so a reader never needs the lock.
"""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from loco.contracts.errors import Conflict
from loco.contracts.files import write_text
from loco.contracts.versions import Version
from loco.recipes.documents import parsed_yaml

#: Thousands of versions.
_MOST_VALUES = 2_000_000

REGISTRY = "registry.yaml"
_LOCK = ".registry.lock"
#: What Ollama is asked for, and nobody records.
_ASKED = {"missing"}
_HEADER = (
    "# A readable copy of the registry. Edits are lost: use `loco promote`.\n"
    "# The newest version of an adapter comes first.\n"
)


def read(adapters_dir: Path) -> dict[str, list[Version]]:
    """Adapter to its versions, newest first; empty when nothing was ever registered.

    Raises:
        Conflict: the file is not what this program writes.
    """
    return {name: _history(name, entry) for name, entry in _read(adapters_dir).items()}


def current(adapters_dir: Path, adapter: str) -> Version | None:
    """The version `MODEL:latest` points to, or None."""
    return next((v for v in read(adapters_dir).get(adapter, []) if v.promoted), None)


def highest(adapters_dir: Path) -> dict[str, int]:
    """Adapter to the highest number it ever gave, where the file says so."""
    entries = ((name, (entry or {}).get("highest")) for name, entry in _read(adapters_dir).items())
    return {name: number for name, number in entries if isinstance(number, int)}


def write(
    adapters_dir: Path,
    history: Mapping[str, Sequence[Version]],
    highest: Mapping[str, int] | None = None,
) -> None:
    """Writes the versions of every adapter, and the last number of each; the caller holds the lock."""
    given = highest or {}
    document = {"adapters": {name: _entry(v, given.get(name)) for name, v in history.items()}}
    text = yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    write_text(adapters_dir / REGISTRY, _HEADER + text)


@contextmanager
def locked(adapters_dir: Path) -> Iterator[None]:
    """The right to write, for one process at a time."""
    with (adapters_dir / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(adapters_dir: Path) -> dict[str, Any]:
    path = adapters_dir / REGISTRY
    if not path.exists():
        return {}
    try:
        document = parsed_yaml(path.read_text(), most=_MOST_VALUES)
        adapters = (document or {})["adapters"] if document else {}
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(adapters, dict):
        raise _unreadable(path, TypeError("adapters is not a mapping"))
    return adapters


def _history(adapter: str, entry: Any) -> list[Version]:
    try:
        versions = [
            Version.model_validate(v, extra="ignore") for v in (entry or {}).get("history", [])
        ]
    except (AttributeError, TypeError, ValidationError) as error:
        raise _unreadable(Path(f"{REGISTRY}: {adapter}"), error) from error
    return sorted(versions, key=lambda v: -v.version)


def _entry(versions: Sequence[Version], highest: int | None) -> dict[str, Any]:
    """An adapter: what serves (or else its newest version, if it has one), and its history."""
    newest_first = sorted(versions, key=lambda v: -v.version)
    shown = next((v for v in newest_first if v.promoted), next(iter(newest_first), None))
    return {
        **(shown.model_dump(mode="json", exclude=_ASKED) if shown else {}),
        **({"highest": highest} if highest else {}),
        "history": [v.model_dump(mode="json", exclude=_ASKED) for v in newest_first],
    }


class _Plain(yaml.SafeDumper):
    """Writes repeated values out instead of as anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (the base class's signature)
        return True


def _unreadable(path: Path, error: Exception) -> Conflict:
    return Conflict(
        f"{path} cannot be read: {error}",
        hint="Fix the file, or move it away. Then versions count from 1 again.",
    )
