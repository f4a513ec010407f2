"""Base models as files: where they lie, whether their weights are whole, what their headers say."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loco.contracts.plans import Shape
from loco.contracts.specs import BaseModelSpec

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")


def missing_weights(folder: Path) -> list[str]:
    """Names of weight files that a model's folder lacks; empty: its weights are whole.

    A download or copy that was interrupted leaves some files of several, and the index names them
    all. Links of a hub's cache count only where they lead to a file.
    """
    index = folder / _INDEX
    present = [file.name for file in folder.glob("*.safetensors") if file.is_file()]
    if index.is_file():
        try:
            named = _indexed(folder)
        except (ValueError, KeyError, TypeError, AttributeError):
            return [_INDEX]
        return sorted(name for name in named if not (folder / name).is_file())
    if any(_SHARD.search(name) for name in present):
        return [_INDEX]
    return [] if present else ["*.safetensors"]


def _indexed(folder: Path) -> set[str]:
    """The weight files that a folder's index names."""
    index = json.loads((folder / _INDEX).read_bytes())
    return {str(name) for name in index["weight_map"].values()}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header of its safetensors file describes it."""

    name: str
    #: As safetensors writes it: BF16, F16, U8, …
    dtype: str
    shape: tuple[int, ...]
    #: Of its first byte in the file.
    offset: int
    #: In bytes.
    size: int


def tensor_entries(file: Path) -> Iterator[TensorEntry]:
    """The tensors of one safetensors file.

    The format: 8 bytes little-endian length, a JSON header of that length, the data.
    https://github.com/huggingface/safetensors#format

    Raises:
        ValueError: the header is damaged.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("the header is longer than the file")
        entries: Any = json.loads(content.read(length))
    if not isinstance(entries, dict):
        raise ValueError("the header is not a JSON object")
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        match entry:
            case {
                "dtype": str(dtype),
                "shape": [*shape],
                "data_offsets": [int(start), int(end)],
            } if 0 <= start <= end and all(isinstance(side, int) for side in shape):
                yield TensorEntry(name, dtype, tuple(shape), 8 + length + start, end - start)
            case _:
                raise ValueError(f"the header does not describe tensor {name}")


def with_stored_size(shape: Shape, base: BaseModelSpec, models_dir: Path) -> Shape:
    """The shape with the size of the 4-bit weights, where they are here whole and stored so.

    Args:
        shape: of the base.
        base: its catalog entry.
        models_dir: cache of base models.
    """
    for folder in base_folders(base, base.train, models_dir):
        if not missing_weights(folder):
            return shape.model_copy(update={"quantized_bytes": _quantized_bytes(folder)})
    return shape


def _quantized_bytes(folder: Path) -> int | None:
    """Bytes of the weights; None where training quantizes them itself, or a header is damaged."""
    try:
        match json.loads((folder / "config.json").read_bytes()):
            case {"quantization_config": {"load_in_4bit": True}}:  # as bitsandbytes writes it
                pass
            case _:
                return None
        # what transformers loads, in its order; other files may hold the same weights again
        names = {_WHOLE} if (folder / _WHOLE).is_file() else _indexed(folder)
        return sum(entry.size for name in names for entry in tensor_entries(folder / name))
    except (OSError, ValueError):
        return None  # loading it will say so


def base_folders(base: BaseModelSpec, source: str, models_dir: Path) -> list[Path]:
    """Where the weights of a catalog entry may lie on this machine.

    Args:
        base: the entry.
        source: its `train` or its `merge`.
        models_dir: cache of base models.
    """
    match base.kind:
        case "folder":
            return [models_dir / source]  # an absolute path stays as it is
        case "smollm2-wheel":
            return sorted(models_dir.glob("SmolLM2-135M-Instruct.v*"))
        case "hub":
            # where loco_trainer.bases.find looks, in its order
            caches = (user_hub_cache(), models_dir / "hub")
            return [folder for cache in caches if (folder := snapshot(cache, source))]


def user_hub_cache() -> Path:
    """The user's own cache of the hub, by the variables that huggingface_hub reads."""
    caches = os.environ.get("XDG_CACHE_HOME", str(Path("~", ".cache")))
    home = os.environ.get("HF_HOME", str(Path(caches, "huggingface")))
    older_name = os.environ.get("HUGGINGFACE_HUB_CACHE", str(Path(home, "hub")))
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE", older_name))).expanduser()


def snapshot(cache: Path, source: str) -> Path | None:
    """A hub model's newest snapshot in a cache, whole or in part; None: it has none."""
    model = cache / f"models--{source.replace('/', '--')}"
    try:
        commit = (model / "refs" / "main").read_text().strip()
    except OSError:
        return None
    folder = model / "snapshots" / commit
    return folder if commit and folder.is_dir() else None
