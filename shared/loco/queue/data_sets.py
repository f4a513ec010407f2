"""The data sets of a server, and which of its jobs still have to read one."""

from collections.abc import Iterator

from loco.contracts.datasets import DataSet
from loco.contracts.errors import Conflict
from loco.contracts.jobs import JobStatus
from loco.datasets.store import DataSets
from loco.datasets.uploads import Limits
from loco.ledger.reader import LedgerReader
from loco.settings import Settings

_PAGE = 100
_NAMED = 5


def data_sets(settings: Settings) -> DataSets:
    """The store of uploads that settings name."""
    megabyte = 2**20
    limits = Limits(
        file=settings.dataset_mb * megabyte,
        owner=settings.datasets_mb * megabyte,
        count=settings.datasets,
    )
    return DataSets(settings.adapters_dir, limits)


def delete(ledger: LedgerReader, settings: Settings, record: DataSet) -> None:
    """Removes a data set; the frozen copies of jobs that ended stay.

    Raises:
        Conflict: a queued or running job reads it; names the first ones.
    """
    if jobs := list(_readers(ledger, record)):
        more = f" and {len(jobs) - _NAMED} more" if len(jobs) > _NAMED else ""
        raise Conflict(
            f"Data set {record.name} ({record.id}) is in use by jobs that have not ended: "
            f"{', '.join(jobs[:_NAMED])}{more}.",
            param="dataset",
            hint="Wait for them, or cancel them with `loco cancel`.",
        )
    data_sets(settings).delete(record)


def _readers(ledger: LedgerReader, record: DataSet) -> Iterator[str]:
    name = f"{record.id}.{record.format}"
    for status in (JobStatus.QUEUED, JobStatus.RUNNING):
        after = None
        while True:
            page = ledger.page(status=status, after=after, limit=_PAGE)
            yield from (job.id for job in page.jobs if name in job.spec.inputs)
            after = page.last
            if not page.more or after is None:
                break
