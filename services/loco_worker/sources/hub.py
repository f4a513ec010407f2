"""Data sets of the hub: rows of plain files in the named repository, and nothing of this machine.

The `datasets` library opens much else: local folders and files by a name, a path or URL that the
repository's own card lists, archives, pickles. So it is told that the name is the hub's (`hf://`), and
what it would read is looked at before it reads it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from loco.contracts.bounds import LARGEST_FETCH
from loco.contracts.disk import disk_full, is_disk_full
from loco.contracts.errors import InvalidRequest, LocoError, SourceUnreachable
from loco.contracts.hub_ids import check_hub_id
from loco.contracts.sources import HuggingFaceSource
from loco.grading.eval_items import EvalItem
from loco.recipes.data_files import largest
from loco_worker.sources import multiple_choice

OFFLINE_CHOICES = (
    "Sources that need no hub: jsonl (a file here), reasoning-gym and arithmetic (generated); "
    'e.g. "prepare": {"source": {"kind": "reasoning-gym"}}.'
)
#: The library's readers of plain data; `cache` is what an earlier job read through one of them.
_READERS = ("json", "csv", "parquet", "arrow", "text", "cache")
_FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
#: Columns of rows and problems; what others hold is not looked at.
_USED = {"conversations", "messages", *EvalItem.model_fields, *multiple_choice.COLUMNS}
_PLAIN = (
    "Choose a data set of json, jsonl, csv, parquet, arrow or text files, or convert this one "
    "to a jsonl file."
)


@dataclass(frozen=True)
class HubTable:
    """A data set of the hub."""

    #: With the columns that rows and problems have, where there is one of them.
    rows: Iterable[Any]
    #: All there are.
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
        InvalidRequest: no id of a data set, one without that configuration or split, one that is too
            large, or one of other files than plain data of its own.
        DiskFull: there is no room to fetch it.
    """
    name = check_hub_id(source.dataset, param=f"{param}.dataset")
    # imported here: the package takes seconds to load and offline jobs don't need it
    import datasets  # noqa: PLC0415

    try:
        # the library has loaded no scripts since its version 4; pinned in services/requirements
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{name}", source.config, revision=source.revision
        )
        _check_files(name, builder, param)
        _check_fetched(name, builder, param)
        builder.download_and_prepare()
        table = builder.as_dataset(split=source.split)
    except Exception as error:
        if is_disk_full(error) or "Not enough disk space" in str(error):
            raise disk_full(Path(datasets.config.HF_DATASETS_CACHE)) from error
        if (told := _told(name, error, param)) is None:
            raise
        raise told from error
    columns, fingerprint = table.column_names, table._fingerprint
    table = table.select_columns([c for c in columns if c in _USED] or columns)
    for column, feature in table.features.items():
        if (plain := _unopened(feature)) != feature:
            table = table.cast_column(column, plain)
    _check_read(name, table.data.nbytes, param)
    description = f"{name} {source.config or ''} {source.split}".replace("  ", " ")
    description += f" (fingerprint {fingerprint})"
    if multiple_choice.has_choices(columns):
        asked = map(multiple_choice.with_options, table)
        return HubTable(asked, ["question", "answer", "kind", "grader"], description)
    return HubTable(table, columns, description)


def _unopened(feature: Any) -> Any:
    """A column's type without what opens the file or URL that a row names: pictures, sound, PDFs."""
    import datasets  # noqa: PLC0415

    if isinstance(feature, dict):
        return {name: _unopened(inner) for name, inner in feature.items()}
    if isinstance(feature, list):  # the library's older spelling of List
        return [_unopened(inner) for inner in feature]
    if hasattr(feature, "feature"):
        return replace(feature, feature=_unopened(feature.feature))
    # of the types that are decoded Json alone holds all it needs
    opens = hasattr(feature, "decode") and not isinstance(feature, datasets.Json)
    return replace(feature, decode=False) if opens else feature


def _told(name: str, error: Exception, param: str) -> LocoError | None:
    """What the library raised, in words; None: that is no fault of the data set or the network."""
    import datasets  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    cause = error
    if isinstance(error, datasets.exceptions.DatasetGenerationError):
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return SourceUnreachable(
            f"The hub has no data set {name!r}, or you may not read it: {error}",
            param=f"{param}.dataset",
            hint=f"Check the ID. Private data sets need HF_TOKEN. {OFFLINE_CHOICES}",
        )
    if isinstance(cause, OSError | HfHubHTTPError):
        # ConnectionError, timeouts and the hub's offline mode are all OSErrors
        return SourceUnreachable(
            f"Could not read data set {name!r} from the hub: {cause}",
            param=param,
            hint=f"Check the network, HF_ENDPOINT and HF_HUB_OFFLINE. {OFFLINE_CHOICES}",
        )
    if isinstance(error, datasets.exceptions.DatasetGenerationError):
        return InvalidRequest(
            f"The files of data set {name!r} cannot be read: {cause}"[:2000],
            param=param,
            hint=_PLAIN,
        )
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in str(error):
        return InvalidRequest(
            f"Data set {name!r} is a program, and locollm does not run programs from a hub: "
            f"{error}",
            param=f"{param}.dataset",
            hint=_PLAIN,
        )
    if isinstance(error, ValueError):
        # an unknown configuration or split: the message lists those there are
        return InvalidRequest(
            f"Data set {name!r}: {error}",
            param=param,
            hint="Set source.config and source.split to what the data set has.",
        )
    return None


def _check_files(name: str, builder: Any, param: str) -> None:
    """Refuses what is no plain data of the repository itself; nothing of it was read yet."""
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _READERS:
        raise InvalidRequest(
            f"Data set {name!r} is of the kind {reader}, which locollm does not read.",
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
                + ("not plain data." if own else "not one of its own files."),
                param=f"{param}.dataset",
                hint=_PLAIN,
            )


def _check_fetched(name: str, builder: Any, param: str) -> None:
    """Refuses what is too large to be fetched: its files as the hub has them, or what its card says."""
    size = max(_fetched(name, builder.config.data_files), builder.info.dataset_size or 0)
    if size > LARGEST_FETCH:
        raise InvalidRequest(
            f"Data set {name!r} has {size:,} bytes in this configuration. The limit is "
            f"{LARGEST_FETCH:,}.",
            param=f"{param}.dataset",
            hint="Choose a smaller configuration, or convert the part that you need to a jsonl "
            "file.",
        )


def _fetched(name: str, data_files: Any) -> int:
    """Bytes of a data set's files, which `_check_files` let pass, as the hub has them."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    paths: dict[str, list[str]] = {}
    for url in _files(data_files):
        revision, _, path = url.removeprefix(f"hf://datasets/{name}@").partition("/")
        paths.setdefault(unquote(revision), []).append(path)
    return sum(
        getattr(found, "size", 0)
        for revision, files in paths.items()
        for asked in _batched(files)
        for found in HfApi().get_paths_info(name, asked, revision=revision, repo_type="dataset")
    )


def _batched(files: list[str], size: int = 500) -> Iterator[list[str]]:
    """So many at a time, as one request asks about."""
    yield from (files[start : start + size] for start in range(0, len(files), size))


def _check_read(name: str, size: int, param: str) -> None:
    """Refuses a split that is larger than a file of rows may be: rows are read into memory."""
    if size > (most := largest(param)):
        raise InvalidRequest(
            f"This split of data set {name!r} has {size:,} bytes in the needed columns. The "
            f"limit for {param} is {most:,}.",
            param=f"{param}.split",
            hint='Use a part of it, e.g. "split": "train[:100000]".',
        )


def _files(data_files: Any) -> Iterator[str]:
    for files in (data_files or {}).values():
        yield from (str(file) for file in files)
