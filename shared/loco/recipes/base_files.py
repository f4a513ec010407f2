"""Base models as files: where the hub's library keeps them, and whether their weights are whole."""

import json
import os
import re
from pathlib import Path

_INDEX = "model.safetensors.index.json"
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
            named = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return [_INDEX]
        return sorted(name for name in named if not (folder / name).is_file())
    if any(_SHARD.search(name) for name in present):
        return [_INDEX]
    return [] if present else ["*.safetensors"]


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
