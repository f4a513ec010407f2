"""What goes into the audit trail: every change that is asked for, and requests without a key, counted."""

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool

from loco.contracts.errors import RedisUnavailable
from loco.contracts.keys import REFUSED, AuditEvent
from loco.ledger.audit import Audit

log = logging.getLogger(__name__)

#: Refusals of an address within so many seconds are one entry.
COUNTED_SECONDS = 60.0
#: Addresses counted at once; beyond, the oldest count is written down early.
_ADDRESSES = 1000
_LONGEST_TARGET = 200


@dataclass
class _Refused:
    since: float
    target: str
    status: int
    count: int = 0


class Trail:
    """Writes the audit trail of this process. For one thread (the event loop's)."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._refused: OrderedDict[str, _Refused] = OrderedDict()

    async def done(self, *, path: str, status: int, **fields: Any) -> None:
        """Records a change that was asked for, and what became of it.

        Args:
            path: where it was asked for.
            status: of the answer.
            fields: the others of `AuditEvent`.
        """
        await self._record(target=_target(path), outcome=_outcome(status), status=status, **fields)

    async def refused(self, address: str, path: str, status: int) -> None:
        """Counts a request without a valid key; the first of an address is recorded at once."""
        entry = self._refused.get(address)
        if entry is not None:
            entry.count += 1
        else:
            self._refused[address] = _Refused(time.monotonic(), _target(path), status)
            await self._write(address, self._refused[address], count=1)
        await self.settle()

    async def settle(self, *, everything: bool = False) -> None:
        """Records what was counted and not told, for addresses whose time is over, or for all."""
        while self._refused:
            address, entry = next(iter(self._refused.items()))
            over = time.monotonic() - entry.since >= COUNTED_SECONDS
            if not (over or everything or len(self._refused) > _ADDRESSES):
                return
            del self._refused[address]
            if entry.count:
                await self._write(address, entry, count=entry.count)

    async def page(self, **asked: Any) -> tuple[list[AuditEvent], bool]:
        """A page of the trail, see `Audit.page`, with the counts whose time is over."""
        await self.settle()
        return await run_in_threadpool(self._audit.page, **asked)

    async def _write(self, address: str, entry: _Refused, *, count: int) -> None:
        await self._record(
            action=REFUSED,
            target=entry.target,
            outcome="refused",
            status=entry.status,
            address=address,
            count=count,
        )

    async def _record(self, **fields: Any) -> None:
        try:
            await run_in_threadpool(self._audit.record, **fields)
        except RedisUnavailable as error:
            log.error("the audit trail has no entry for %s: %s", fields, error.message)


def _target(path: str) -> str:
    """The path as text that no terminal takes for anything else."""
    return quote(path, safe="/:@!$&'()*+,;=~")[:_LONGEST_TARGET]


def _outcome(status: int) -> str:
    return "ok" if status < 400 else "refused" if status < 500 else "failed"
