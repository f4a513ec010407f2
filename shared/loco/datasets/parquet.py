"""Parquet through pyarrow, where it is installed. A packed file unpacks to far more than it has.

What the file says of itself is checked before anything is unpacked; it may lie, so who reads files
of others does it in a process with a limit on memory (`datasets.child`).
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from loco.contracts.errors import DataError

MAGIC = b"PAR1"
#: Rows and bytes, unpacked, that a file may say it has.
_MOST_ROWS = 1_000_000
LARGEST_UNPACKED = 2 * 2**30
MOST_COLUMNS = 1000
#: Rows unpacked at once.
_BATCH = 64


def records(path: Path, check: Callable[[Iterable[str]], object]) -> Iterator[dict[str, Any]]:
    """The rows of a file.

    Args:
        path: the file.
        check: looks at the names of its columns, and raises where they will not do.

    Raises:
        DataError: pyarrow is not installed, the file is broken, or beyond the bounds.
    """
    try:
        import pyarrow  # noqa: PLC0415 (50 ms and 100 MB that other formats do not need)
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            f"{path.name} is Parquet, which needs pyarrow here.",
            hint="`pip install pyarrow` where this runs, or export the rows as CSV or JSONL.",
        ) from error
    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            _check_size(path, file.metadata)
            check(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path.name} cannot be read as Parquet: {str(error).splitlines()[0]:.200}.",
            hint="Write the file again, or export the rows as CSV or JSONL.",
        ) from error


def _check_size(path: Path, said: Any) -> None:
    """Refuses what a file says it holds, before any of it is unpacked."""
    unpacked = sum(said.row_group(n).total_byte_size for n in range(said.num_row_groups))
    for count, most, what in (
        (said.num_rows, _MOST_ROWS, "rows"),
        (said.num_columns, MOST_COLUMNS, "columns"),
        (unpacked, LARGEST_UNPACKED, "bytes when unpacked"),
    ):
        if count > most:
            raise DataError(
                f"{path.name} has {count:,} {what}. {most:,} are allowed.",
                hint="Use a part of it.",
            )
