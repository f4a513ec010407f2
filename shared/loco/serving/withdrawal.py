"""Deletes a version: out of the ledger at once, its names out of Ollama behind it, also after a crash."""

import logging

from loco.contracts.errors import LocoError, OllamaRefused, OllamaUnavailable
from loco.contracts.removals import VersionRemoval
from loco.contracts.serving import exported_base
from loco.contracts.versions import Version
from loco.ledger.ledger import Ledger
from loco.serving.host import OllamaHost
from loco.serving.latest import ANSWER_SECONDS, PAUSE, follow

#: Versions whose digests are looked up: all of an adapter.
_ALL = 100_000

logger = logging.getLogger(__name__)


def remove_version(
    ledger: Ledger,
    ollama_host: str,
    adapter: str,
    version: Version,
    *,
    owner: str | None,
    force: bool,
) -> VersionRemoval:
    """Deletes a version and takes its names out of Ollama.

    Args:
        ledger: records it.
        ollama_host: base URL of Ollama.
        adapter: whose version.
        version: which.
        owner: of the job that built it.
        force: delete it also where it serves; then nothing serves under its model's name.

    Raises:
        Conflict: it serves, or a job works on it.
        Busy: jobs come so fast that nobody can tell.
    """
    known = ledger.registry.versions(adapter, limit=_ALL, model=version.model)[0]
    digests = {version.digest, *(v.digest for v in known)}
    removal = ledger.withdrawals.remove(
        adapter, version, owner=owner, digests=sorted(digests), force=force
    )
    return cleared(ledger, ollama_host, removal)


def cleared(ledger: Ledger, ollama_host: str, removal: VersionRemoval) -> VersionRemoval:
    """Takes the names of a deleted version out of Ollama, and says whether they are."""
    try:
        if ledger.withdrawals.latest_of(removal.model):
            follow(ledger, ollama_host, removal.model)
        left = ledger.withdrawals.candidates(due=False)
        for name in (removal.candidate, exported_base(removal.candidate)):
            if name in left:
                _take_out(ledger, ollama_host, name)
    except LocoError as error:
        logger.warning("%s is not out of Ollama yet: %s", removal.candidate, error)
        return removal.model_copy(update={"cleared": False})
    return removal


def clear_withdrawn(ledger: Ledger, ollama_host: str) -> None:
    """Takes out what a deletion left; trouble is logged and tried again later."""
    for candidate in ledger.withdrawals.candidates():
        try:
            _take_out(ledger, ollama_host, candidate)
        except (OllamaUnavailable, OllamaRefused) as error:
            logger.warning("%s is not out of Ollama yet: %s", candidate, error)


def _take_out(ledger: Ledger, ollama_host: str, candidate: str) -> None:
    """Deletes a candidate, or the base beside it, where Ollama has it.

    Raises:
        OllamaUnavailable, OllamaRefused: it does not answer, or refuses.
    """
    try:
        with OllamaHost(ollama_host, seconds=ANSWER_SECONDS) as host:
            if candidate in host.digests():
                host.delete(candidate)
    except BaseException:
        ledger.withdrawals.put_off(candidate, pause=PAUSE)
        raise
    ledger.withdrawals.gone(candidate)
