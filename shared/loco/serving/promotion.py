"""What people do to versions: promote one by hand, roll back, make one again in Ollama.

Each records it in the ledger first and returns once Ollama was seen to follow. Where Ollama fails in
between, the error says so, and the workers go on trying.
"""

from functools import partial
from pathlib import Path

from loco.contracts.errors import CandidateMissing, Conflict, InvalidRequest, LocoError, NotFound
from loco.contracts.files import sha256_of
from loco.contracts.versions import Restored, Version
from loco.ledger.ledger import Ledger
from loco.ledger.registry import rollback_target
from loco.serving.bases import require_base
from loco.serving.host import OllamaHost
from loco.serving.latest import check_candidate, follow
from loco.serving.restored import check_restored, reference_of
from loco.settings import Settings


def promote(
    ledger: Ledger,
    settings: Settings,
    adapter: str,
    number: int,
    *,
    by: str,
    reason: str,
    force: bool,
) -> Version:
    """Has a version serve as `MODEL:latest`.

    Args:
        ledger: records it.
        settings: say where Ollama is.
        adapter: whose version.
        number: which.
        by: name of the API key, or `local`.
        reason: why, for the audit trail; may be empty.
        force: promote also what the gate refused.

    Raises:
        NotFound: no such version.
        VersionRefused: the gate refused it, and `force` was not given.
        CandidateMissing: Ollama does not hold its model as it was registered.
        Conflict: the model's name belongs to another adapter.
        OllamaUnavailable, OllamaRefused: see `latest.follow`.
    """
    version = ledger.registry.version(adapter, number)
    _check(settings, adapter, version)
    ledger.registry.promote(adapter, number, by=by, reason=reason, force=force)
    _follow(ledger, settings, version)
    return ledger.registry.version(adapter, number)


def rollback(
    ledger: Ledger, settings: Settings, adapter: str, model: str, *, by: str, reason: str
) -> Version:
    """Has what was promoted before the present version of a model serve again.

    Args:
        ledger: records it.
        settings: say where Ollama is.
        adapter: whose model.
        model: its name in Ollama.
        by: name of the API key, or `local`.
        reason: why, for the audit trail; may be empty.

    Returns:
        The version that serves now.

    Raises:
        InvalidRequest: nothing of this adapter is promoted under that name.
        Conflict: nothing was promoted before, or something was promoted meanwhile.
        CandidateMissing: Ollama does not hold the model it would go back to; nothing is skipped.
        OllamaUnavailable, OllamaRefused: see `latest.follow`.
    """
    target = rollback_target(ledger.registry, adapter, model)
    version = ledger.registry.version(adapter, target)
    _check(settings, adapter, version)
    ledger.registry.rollback(adapter, model, target, by=by, reason=reason)
    _follow(ledger, settings, version)
    return ledger.registry.version(adapter, target)


def model_of(ledger: Ledger, adapter: str, model: str | None, usual: str | None) -> str:
    """The model a request means: the one it names, the recipe's, or the only one promoted.

    Raises:
        InvalidRequest: several are promoted, and none was named.
        Conflict: nothing is promoted.
    """
    if model is not None:
        return model
    promoted = [pointer.model for pointer in ledger.registry.pointers(adapter)]
    if usual in promoted:
        return str(usual)
    if not promoted:
        raise Conflict(
            f"No version of {adapter} is promoted.", hint=f"`loco versions {adapter}` lists them."
        )
    if len(promoted) > 1:
        raise InvalidRequest(
            f"Several models of {adapter} are promoted: {', '.join(promoted)}.",
            param="model",
            hint="Say which.",
        )
    return promoted[0]


def restore(
    ledger: Ledger, settings: Settings, adapter: str, number: int, *, by: str, anew: bool = False
) -> Restored:
    """Makes a version's candidate again in Ollama, from its GGUF: the same version, the same name.

    Where Ollama has it, unchanged, nothing is made. Either way it is looked at (`serving.restored`)
    before `latest` follows, which it does where the version is promoted.

    Args:
        ledger: knows the version.
        settings: the adapters folder, and where Ollama is.
        adapter: whose version.
        number: which.
        by: name of the API key, or `local`.
        anew: make it also where Ollama has it.

    Raises:
        NotFound: no such version, or its GGUF is gone, or the version was deleted meanwhile: then
            what was made goes, too.
        CandidateMissing: the base that an adapter is served on can't be had (`serving.bases`).
        Conflict: the GGUF is not what was registered.
        RegistrationFailed: what Ollama made of it is not; nothing was pointed at it.
        OllamaUnavailable, OllamaRefused: Ollama does not answer, or does not take it.
    """
    version = ledger.registry.version(adapter, number)
    with OllamaHost(settings.ollama_host) as host:
        before = digest = host.digests().get(version.candidate)
        created = anew or digest != version.digest
        record = partial(
            ledger.registry.restored, adapter, number, candidate=version.candidate, by=by
        )
        try:
            if created:
                digest = _create(host, settings, adapter, version)
            reference = reference_of(ledger, settings.adapters_dir, version)
            warnings = check_restored(host, adapter, version, reference)
        except LocoError:
            record(None)  # a deletion of the version meanwhile says more, and what was made goes
            raise
    assert digest is not None
    if not created or before == digest == version.digest:
        # the same: nothing has happened to the version, and `latest` has followed already
        record(None)
    else:
        changed = f"The digest changed from {version.digest[:12]} to {digest[:12]}."
        why = changed if digest != version.digest else "Made again with the same digest."
        record(digest, reason=why)
    pointer = ledger.registry.promoted(version.model)
    promoted = pointer is not None and (pointer.adapter, pointer.version) == (adapter, number)
    if promoted:
        follow(ledger, settings.ollama_host, version.model)
    return Restored(
        version=number,
        model=version.model,
        candidate=version.candidate,
        promoted=promoted,
        created=created,
        digest=str(digest),
        previous_digest=version.digest,
        warnings=warnings,
    )


def _create(host: OllamaHost, settings: Settings, adapter: str, version: Version) -> str:
    """Uploads the GGUF, creates the candidate as register did, and answers its digest."""
    gguf, base = _gguf(settings.adapters_dir, adapter, version), version.base
    if base is not None:
        require_base(host, base, settings.models_dir)
    blob = {gguf.name: version.blob}
    if not host.has_blob(version.blob):
        host.upload(gguf, version.blob, lambda _sent: None)
    host.create(
        version.candidate,
        files=None if base else blob,
        base=base.model if base else None,
        adapters=blob if base else None,
        system=version.system,
        parameters=version.parameters,
        status=lambda _line: None,
    )
    digest = host.digests().get(version.candidate)
    if digest is None:
        raise CandidateMissing(
            f"Ollama at {host.url} created {version.candidate} but does not list it.",
            hint="Ollama's own log says more.",
        )
    return digest


def _gguf(adapters_dir: Path, adapter: str, version: Version) -> Path:
    """The version's GGUF, seen to be what was registered.

    Raises:
        NotFound: it is gone, or was never inside the adapters folder.
        Conflict: it has another SHA-256.
    """
    path = (adapters_dir / version.gguf).resolve()
    inside = path.is_relative_to((adapters_dir / adapter).resolve())
    if not inside or not path.is_file():
        raise NotFound(
            f"{version.gguf}, the GGUF of version {version.version}, is missing.",
            hint=f"Build it again: `loco submit {adapter}` makes a new version.",
        )
    found = f"sha256:{sha256_of(path)}"
    if found != version.blob:
        raise Conflict(
            f"{version.gguf} has changed: its hash is {found[:19]}, but version "
            f"{version.version} was registered with {version.blob[:19]}.",
            hint=f"Build it again: `loco submit {adapter}` makes a new version.",
        )
    return path


def _check(settings: Settings, adapter: str, version: Version) -> None:
    """Before anything is recorded: what Ollama does not hold cannot be promoted."""
    with OllamaHost(settings.ollama_host) as host:
        check_candidate(
            host,
            adapter=adapter,
            number=version.version,
            candidate=version.candidate,
            digest=version.digest,
        )


def _follow(ledger: Ledger, settings: Settings, version: Version) -> None:
    """Has Ollama follow; the error of one that does not says that the change is recorded."""
    try:
        follow(ledger, settings.ollama_host, version.model)
    except LocoError as error:
        recorded = (
            f"Version {version.version} is promoted, but Ollama does not serve it as latest yet: "
        )
        raise type(error)(
            recorded + error.message,
            param=error.param,
            hint=f"The workers try again. {error.hint or ''}".strip(),
        ) from error
