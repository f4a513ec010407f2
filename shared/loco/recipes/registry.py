"""adapters/registry.yaml: what each adapter has in Ollama, and everything it had before.

    adapters:
      math:
        model: locollm-math
        version: 3            # the one `locollm-math:latest` points to
        …
        history: [version 3, version 2, version 1]

Register and eval write it, under a lock and by renaming, so a reader never needs the lock.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from loco.contracts.errors import Conflict
from loco.contracts.files import write_text
from loco.contracts.versions import Version

REGISTRY = "registry.yaml"
_LOCK = ".registry.lock"
_HEADER = (
    "# Written by the stages register and eval. The newest version of an adapter comes first.\n"
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


def record(adapters_dir: Path, adapter: str, version: Version) -> Version:
    """Adds a version, or replaces that of the same job, and returns it with its number."""
    with _locked(adapters_dir):
        document = _read(adapters_dir)
        history = _history(adapter, document.get(adapter, {}))
        same_job = next((v for v in history if v.job == version.job), None)
        number = same_job.version if same_job else max((v.version for v in history), default=0) + 1
        version = version.model_copy(update={"version": number})
        others = [v for v in history if v.job != version.job]
        if version.promoted:
            others = [v.model_copy(update={"promoted": False}) for v in others]
        _write(adapters_dir, document, adapter, [version, *others])
    return version


def record_scores(adapters_dir: Path, adapter: str, job: str, scores: dict[str, Any]) -> bool:
    """Adds the scores of a job's version; False when the registry has no version of that job."""
    with _locked(adapters_dir):
        document = _read(adapters_dir)
        history = _history(adapter, document.get(adapter, {}))
        if not any(v.job == job for v in history):
            return False
        history = [v.model_copy(update={"scores": scores}) if v.job == job else v for v in history]
        _write(adapters_dir, document, adapter, history)
    return True


@contextmanager
def _locked(adapters_dir: Path) -> Iterator[None]:
    with (adapters_dir / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(adapters_dir: Path) -> dict[str, Any]:
    path = adapters_dir / REGISTRY
    if not path.exists():
        return {}
    try:
        document = yaml.safe_load(path.read_text())
        adapters = (document or {})["adapters"] if document else {}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(adapters, dict):
        raise _unreadable(path, TypeError("adapters is not a mapping"))
    return adapters


def _history(adapter: str, entry: Any) -> list[Version]:
    try:
        versions = [Version.model_validate(v) for v in (entry or {}).get("history", [])]
    except (AttributeError, TypeError, ValidationError) as error:
        raise _unreadable(Path(f"{REGISTRY}: {adapter}"), error) from error
    return sorted(versions, key=lambda v: -v.version)


def _write(
    adapters_dir: Path, document: dict[str, Any], adapter: str, versions: list[Version]
) -> None:
    versions = sorted(versions, key=lambda v: -v.version)
    shown = next((v for v in versions if v.promoted), versions[0])
    entry = {**shown.model_dump(), "history": [v.model_dump() for v in versions]}
    document = {"adapters": {**document, adapter: entry}}
    text = yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    write_text(adapters_dir / REGISTRY, _HEADER + text)


class _Plain(yaml.SafeDumper):
    """Writes repeated values out instead of as anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (the base class's signature)
        return True


def _unreadable(path: Path, error: Exception) -> Conflict:
    return Conflict(
        f"{path} cannot be read: {error}",
        hint="Mend or move the file away; it is written anew by the next register.",
    )
