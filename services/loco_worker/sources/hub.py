"""Data sets of the hub: rows of plain files in the named repository, and nothing of this machine.

The `datasets` library opens much else: local folders and files by a name, a path or URL that the
repository's own card lists, archives, pickles. So it is told that the name is the hub's (`hf://`), and
what it would read is looked at before it reads it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from loco.contracts.errors import InvalidRequest, SourceUnreachable
from loco.contracts.hub_ids import check_hub_id
from loco.contracts.sources import HuggingFaceSource

OFFLINE_CHOICES = (
    "Sources that need no hub: jsonl (a file here), reasoning-gym and arithmetic (generated); "
    'e.g. "prepare": {"source": {"kind": "reasoning-gym"}}.'
)
#: The library's readers of plain data; `cache` is what an earlier job read through one of them.
_READERS = ("json", "csv", "parquet", "arrow", "text", "cache")
_FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_PLAIN = "Take a data set of json, jsonl, csv, parquet, arrow or text files, or convert it to a jsonl file."


@dataclass(frozen=True)
class HubTable:
    """A data set of the hub."""

    rows: Iterable[Any]
    columns: list[str]
    #: Name and fingerprint.
    description: str


def hub_table(source: HuggingFaceSource, param: str = "prepare.source") -> HubTable:
    """A data set of the hub.

    Args:
        source: its spec.
        param: the field of the request that names it, for errors.

    Raises:
        SourceUnreachable: the hub cannot be reached, or has no such data set.
        InvalidRequest: no id of a data set, one without that configuration or split, or one of other
            files than plain data of its own.
    """
    name = check_hub_id(source.dataset, param=f"{param}.dataset")
    # imported here: the package takes seconds to load and offline jobs don't need it
    import datasets  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        # the library has loaded no scripts since its version 4; pinned in services/requirements
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{name}", source.config, revision=source.revision
        )
        _check_files(name, builder, param)
        builder.download_and_prepare()
        table = builder.as_dataset(split=source.split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise SourceUnreachable(
            f"The hub has no data set {name!r} that may be read from here: {error}",
            param=f"{param}.dataset",
            hint=f"Check the id; private ones need HF_TOKEN. {OFFLINE_CHOICES}",
        ) from error
    except (OSError, HfHubHTTPError) as error:
        # ConnectionError, timeouts and the hub's offline mode are all OSErrors
        raise _unreachable(name, error, param) from error
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise _unreachable(name, error.__cause__, param) from error
        raise InvalidRequest(
            f"The files of data set {name!r} cannot be read: {error.__cause__ or error}"[:2000],
            param=param,
            hint=_PLAIN,
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise InvalidRequest(
            f"Data set {name!r} is a program, and programs of a hub are not run: {error}",
            param=f"{param}.dataset",
            hint=_PLAIN,
        ) from error
    except ValueError as error:
        # an unknown configuration or split: the message lists those there are
        raise InvalidRequest(
            f"Data set {name!r}: {error}",
            param=param,
            hint="Set source.config and source.split to what the data set has.",
        ) from error
    description = f"{name} {source.config or ''} {source.split}".replace("  ", " ")
    return HubTable(table, table.column_names, f"{description} (fingerprint {table._fingerprint})")


def _unreachable(name: str, error: Exception, param: str) -> SourceUnreachable:
    return SourceUnreachable(
        f"Could not read data set {name!r} from the hub: {error}",
        param=param,
        hint=f"Check the network, HF_ENDPOINT and HF_HUB_OFFLINE. {OFFLINE_CHOICES}",
    )


def _check_files(name: str, builder: Any, param: str) -> None:
    """Refuses what is no plain data of the repository itself; nothing of it was read yet."""
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _READERS:
        raise InvalidRequest(
            f"Data set {name!r} is of the kind {reader}, which is not read here.",
            param=f"{param}.dataset",
            hint=_PLAIN,
        )
    for url in _files(builder.config.data_files):
        place = PurePosixPath(url.removeprefix(f"hf://datasets/{name}@"))
        own = url.startswith(f"hf://datasets/{name}@") and ".." not in place.parts
        suffixes = [suffix.lower() for suffix in place.suffixes]
        if suffixes and suffixes[-1] in _PACKED:
            suffixes.pop()
        if not own or "::" in url or not suffixes or suffixes[-1] not in _FORMATS:
            raise InvalidRequest(
                f"Data set {name!r} names the file {url!r:.300}, which is "
                + ("no plain data." if own else "not one of its own."),
                param=f"{param}.dataset",
                hint=_PLAIN,
            )


def _files(data_files: Any) -> Iterator[str]:
    for files in (data_files or {}).values():
        yield from (str(file) for file in files)
