"""What Tab offers: adapters, profiles, jobs and versions of the server. Silent where there is none.

loco --install-completion
"""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

import typer

from loco.client.client import Client
from loco.client.references import LAST
from loco.client.target import key_of
from loco.contracts.errors import LocoError
from loco.contracts.jobs import JobLine, JobStatus

#: Seconds for the server's answer: longer than this nobody waits for a Tab.
_SECONDS = 1.0

#: So many at most.
_MOST = 100

_OfferedT = TypeVar("_OfferedT")
#: What is offered, and a word on it.
Offer = tuple[str, str]


def jobs(context: typer.Context, incomplete: str) -> list[Offer]:
    """IDs of jobs, newest first, and `last`."""
    return _jobs(context, incomplete, lambda _: True)


def waiting_jobs(context: typer.Context, incomplete: str) -> list[Offer]:
    """IDs of jobs that have not ended."""
    return _jobs(context, incomplete, lambda line: not line.status.is_terminal)


def ended_jobs(context: typer.Context, incomplete: str) -> list[Offer]:
    """IDs of jobs that have ended."""
    return _jobs(context, incomplete, lambda line: line.status.is_terminal)


def stopped_jobs(context: typer.Context, incomplete: str) -> list[Offer]:
    """IDs of jobs that can be retried."""
    stopped = (JobStatus.FAILED, JobStatus.CANCELLED)
    return _jobs(context, incomplete, lambda line: line.status in stopped)


def adapters(context: typer.Context, incomplete: str) -> list[Offer]:
    """Names of adapters."""
    found = _asked(context, lambda loco: loco.adapters())
    offers = ((str(a["name"]), str(a.get("description") or "")) for a in found)
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def profiles(context: typer.Context, incomplete: str) -> list[Offer]:
    """Profiles of the adapter on the line, else of all."""
    adapter = context.params.get("adapter")
    found = _asked(context, lambda loco: loco.adapters())
    names = {
        (profile, "")
        for entry in found
        if adapter in (None, entry["name"])
        for profile in entry.get("profiles", ())
    }
    return sorted(offer for offer in names if offer[0].startswith(incomplete))


def versions(context: typer.Context, incomplete: str) -> list[Offer]:
    """Numbers of versions of the adapter on the line, newest first."""
    adapter = context.params.get("adapter")
    if not adapter:
        return []
    found = _asked(context, lambda loco: loco.versions(adapter))
    offers = ((str(v.version), f"{v.model}{', serves' if v.promoted else ''}") for v in found)
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def artifacts(context: typer.Context, incomplete: str) -> list[Offer]:
    """Names of files of the job on the line, and its stages."""
    job = context.params.get("job_id")
    if not job:
        return []
    found = list(_asked(context, lambda loco: loco.artifacts(loco.job_id(job))))
    stages = dict.fromkeys(a.folder for a in found)
    offers = [(stage, "all of its files") for stage in stages]
    offers += [(a.full_name, "") for a in found]
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def _jobs(
    context: typer.Context, incomplete: str, wanted: Callable[[JobLine], bool]
) -> list[Offer]:
    like = "" if LAST.startswith(incomplete) else incomplete
    lines = _asked(context, lambda loco: loco.job_lines(like=like))
    offers = [
        (line.id, f"{line.adapter} {line.profile}, {line.status}") for line in lines if wanted(line)
    ]
    if LAST.startswith(incomplete):
        offers.append((LAST, "your newest job"))
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def _asked(context: typer.Context, ask: Callable[[Client], Iterable[_OfferedT]]) -> list[_OfferedT]:
    """What the server of the line answers at once; nothing where it does not, or lets nobody in."""
    given = context.find_root().params
    try:
        key = given.get("api_key")
        file = given.get("api_key_file")
        if not key and file:
            key = key_of(Path(file))
        with Client(given.get("server"), key, _SECONDS, repeats=False) as loco:
            return list(islice(ask(loco), _MOST))
    except LocoError:
        return []  # a Tab is no place for an error: the command itself says what is wrong
