"""`MODEL:latest` in Ollama follows the ledger.

The ledger says which version a model points to; here the immutable candidate is copied over
`latest` (a copy of a manifest: readers see the old model or the new one) and seen to have its digest.
Who copies holds a short lock in the ledger and is heard afterwards: what was promoted meanwhile is
copied at once, and after a deployer that vanished `latest` is looked at once more. Where the version
that served was deleted, `latest` is taken away in the same way.
"""

import logging
import time
import uuid

from loco.contracts.errors import CandidateMissing, LocoError, OllamaRefused, OllamaUnavailable
from loco.contracts.versions import Pointer
from loco.ledger.ledger import Ledger
from loco.serving.host import OllamaHost

#: Seconds a copy may take before another process may try; each answer of Ollama gets a part of it.
PATIENCE = 60.0
ANSWER_SECONDS = 10.0
#: Seconds before a copy that failed is tried again.
PAUSE = 10.0
_LONG_PAUSE = 600.0
#: Between two looks at a lock that somebody holds.
_LOOK = 0.05

logger = logging.getLogger(__name__)


def follow(ledger: Ledger, ollama_host: str, model: str, *, wait: bool = True) -> Pointer | None:
    """Has `MODEL:latest` be what the ledger says, and verifies it.

    Args:
        ledger: says what it shall be.
        ollama_host: base URL of Ollama.
        model: its name in Ollama, without tag.
        wait: whether to wait for somebody who is at it; he sees to what was promoted meanwhile.

    Returns:
        What `latest` is now; None when nothing is promoted under that name, or somebody is at it.

    Raises:
        OllamaUnavailable: no Ollama answers. This and every other failure is tried again later.
        CandidateMissing: Ollama has no such candidate, or another model under its name.
        OllamaRefused: it refuses the copy, or says it copied and did not.
    """
    nonce = uuid.uuid4().hex
    while True:
        if not _has_turn(ledger, model, nonce, wait=wait):
            return None
        pointer = ledger.registry.promoted(model)
        try:
            with OllamaHost(ollama_host, seconds=ANSWER_SECONDS) as host:
                if pointer is None:
                    take_away(host, f"{model}:latest", ledger.withdrawals.latest_of(model))
                else:
                    copy(host, pointer)
        except BaseException as error:
            # what is not there comes back through `loco setup`, which asks for a try by itself
            pause = _LONG_PAUSE if isinstance(error, CandidateMissing) else PAUSE
            ledger.registry.deployed(model, nonce, serial=None, pause=pause)
            raise
        if pointer is None:
            if ledger.registry.deployed(model, nonce, serial="withdrawn", pause=PATIENCE):
                return None
        elif ledger.registry.deployed(
            model, nonce, serial=pointer.serial, digest=pointer.digest, pause=PATIENCE
        ):
            logger.info("%s is version %d (%s)", pointer.latest, pointer.version, pointer.candidate)
            return ledger.registry.promoted(model)


def follow_all(ledger: Ledger, ollama_host: str) -> None:
    """Does so for every model that is due; trouble is logged and tried again later."""
    for model in ledger.registry.undeployed():
        try:
            follow(ledger, ollama_host, model, wait=False)
        except (OllamaUnavailable, OllamaRefused, CandidateMissing) as error:
            logger.warning("%s:latest is not up to date yet: %s %s", model, error, error.hint or "")


def check_candidate(
    host: OllamaHost, *, adapter: str, number: int, candidate: str, digest: str
) -> None:
    """Refuses a candidate that Ollama does not hold as it was registered.

    Raises:
        CandidateMissing: it is not there, or its digest is another one.
    """
    found = host.digests().get(candidate)
    if found is None:
        raise CandidateMissing(
            f"Ollama at {host.url} no longer has {candidate}.",
            param="version",
            hint=f"`loco setup {adapter} --version {number}` creates it again from its GGUF.",
        )
    if found != digest:
        raise CandidateMissing(
            f"{candidate} in Ollama at {host.url} is not the registered model: its digest is "
            f"{found[:12]}, not {digest[:12]}.",
            param="version",
            hint=f"`loco setup {adapter} --version {number}` creates it again from its GGUF.",
        )


def copy(host: OllamaHost, pointer: Pointer) -> None:
    """Copies the candidate over `latest`, unless it is that already, and verifies the digest.

    Raises:
        CandidateMissing, OllamaRefused, OllamaUnavailable: see `follow`.
    """
    check_candidate(
        host,
        adapter=pointer.adapter,
        number=pointer.version,
        candidate=pointer.candidate,
        digest=pointer.digest,
    )
    if host.digests().get(pointer.latest) == pointer.digest:
        return
    host.copy(pointer.candidate, pointer.latest)
    seen = host.digests().get(pointer.latest)
    if seen != pointer.digest:
        raise OllamaRefused(
            f"Ollama at {host.url} reported a copy of {pointer.candidate} to {pointer.latest}, "
            f"but the copy has digest {(seen or 'none')[:12]} instead of {pointer.digest[:12]}.",
            hint="Ollama's own log says more. The workers try the copy again.",
        )


def take_away(host: OllamaHost, latest: str, digests: set[str]) -> None:
    """Deletes a model's `latest`, unless somebody else made it of something that we never registered.

    Raises:
        OllamaRefused, OllamaUnavailable: see `follow`.
    """
    if host.digests().get(latest) in digests:
        host.delete(latest)
        logger.info("%s is gone: its version was deleted", latest)


def _has_turn(ledger: Ledger, model: str, nonce: str, *, wait: bool) -> bool:
    """Whether this is the one to copy now, perhaps after waiting.

    Raises:
        LocoError: somebody was at it for the whole time.
    """
    deadline = time.monotonic() + 2 * PATIENCE
    while (turn := ledger.registry.deploy(model, nonce, patience=PATIENCE)) == "busy":
        if not wait:
            return False
        if time.monotonic() > deadline:
            raise LocoError(
                f"Another process has been copying to {model}:latest for {2 * PATIENCE:.0f} s.",
                hint="Look at the logs of the workers.",
            )
        time.sleep(_LOOK)
    return turn == "yours"
