"""The base that adapters are served on, in Ollama: there, or created from the GGUF that export keeps."""

from collections.abc import Callable
from pathlib import Path

from loco.contracts.errors import CandidateMissing, UnsafePath
from loco.contracts.files import sha256_of
from loco.contracts.paths import inside
from loco.contracts.serving import ServedBase
from loco.serving.host import OllamaHost


def require_base(
    host: OllamaHost,
    base: ServedBase,
    models_dir: Path,
    *,
    sent: Callable[[int], None] = lambda _: None,
    status: Callable[[str], None] = lambda _: None,
) -> str:
    """Digest of the base in Ollama, created there first where it is missing.

    Args:
        host: where it shall be.
        base: as export wrote it.
        models_dir: the folder of base models.
        sent: called with the bytes uploaded so far; what it raises ends the upload.
        status: called with each line the server says.

    Raises:
        CandidateMissing: it is neither there nor in the folder as it was written.
        OllamaUnavailable, OllamaRefused: the server does not answer, or does not take it.
    """
    if (there := host.digests().get(base.model)) is not None:
        return there
    path = _file(host, base, models_dir)
    if not host.has_blob(base.blob):
        host.upload(path, base.blob, sent)
    # no system prompt and no parameters: what stands on it would inherit them
    host.create(base.model, files={path.name: base.blob}, system=None, parameters={}, status=status)
    digest = host.digests().get(base.model)
    if digest is None:
        raise CandidateMissing(
            f"Ollama at {host.url} created {base.model} but does not list it.",
            hint="Ollama's own log says more.",
        )
    return digest


def _file(host: OllamaHost, base: ServedBase, models_dir: Path) -> Path:
    fix = (
        f"Copy {base.path} there from the machine that exported the adapter, or build the "
        "adapter again without reuse (`loco submit ADAPTER --no-reuse`). Export then writes the "
        "base again."
    )
    missing = f"{base.model}, the base of the adapter, is not in Ollama at {host.url}"
    try:
        path = inside(models_dir, base.path)
    except UnsafePath as error:
        raise CandidateMissing(f"{missing}: {error.message}", hint=fix) from error
    if not path.is_file():
        raise CandidateMissing(f"{missing}, and its GGUF is not at {path}.", hint=fix)
    if f"sha256:{sha256_of(path)}" != base.blob:
        raise CandidateMissing(f"{missing}, and {path} has changed since it was written.", hint=fix)
    return path
