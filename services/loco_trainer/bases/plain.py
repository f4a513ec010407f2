"""A base model is data: weights in safetensors, JSON and text, all of its own folder.

Two walls against code in a model: a folder that brings some is refused by name (`check`), and transformers
is left without the function that would load it (`refuse_code`), whoever calls it with whatever flags.
"""

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from loco.contracts.errors import UnknownBaseModel

#: Weights that are pickles, which run code when they are read.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Larger than any config; a tokenizer's table is no config.
_LARGEST_CONFIG = 16 * 2**20


def check(folder: Path) -> Path:
    """The folder of a base model, shown to hold nothing that leads out of it or asks for code.

    Raises:
        UnknownBaseModel: a file leads elsewhere, or a config names a program; says which.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # a hub's cache: its files are links to blobs beside
        allowed.append((home.parent.parent / "blobs").resolve())
    for file in sorted(folder.rglob("*")):
        target = Path(os.path.realpath(file))  # of links in a circle, too
        if not any(target.is_relative_to(place) for place in allowed):
            raise _refused(
                folder, f"{file.relative_to(folder)} is a link to {target}, outside the folder"
            )
    for file in sorted(folder.glob("*config*.json")):
        if file.is_file() and (where := _code_in(file)) is not None:
            raise _refused(
                folder, f"{file.name} needs a program that comes with the model ({where})"
            )
    return folder


def pickles(folder: Path) -> list[str]:
    """Names of weights in a folder that are pickles, which are never read."""
    return sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)


def refuse_code() -> None:
    """Takes from transformers, in this process, what loads a model's own program.

    llama.cpp's converter asks for it (`trust_remote_code=True`) wherever it loads a tokenizer.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.get_class_in_module = _no_code


def _no_code(class_name: str, module_path: Any, **_: Any) -> NoReturn:
    raise UnknownBaseModel(
        f"The base model needs its own program, {class_name} in {Path(module_path).name}. "
        "locollm does not run programs from models.",
        param="base_model",
        hint="Choose a base model whose architecture and tokenizer are part of transformers.",
    )


def _code_in(file: Path) -> str | None:
    """Where a config asks for code, or None."""
    if file.stat().st_size > _LARGEST_CONFIG:
        raise _refused(file.parent, f"{file.name} is larger than 16 MiB")
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None  # whoever reads it says so
    levels = [config, *config.values()] if isinstance(config, dict) else []
    return next(
        ("auto_map" for level in levels if isinstance(level, dict) and level.get("auto_map")), None
    )


def _refused(folder: Path, why: str) -> UnknownBaseModel:
    return UnknownBaseModel(
        f"locollm does not load the base model in {folder}: {why}.",
        param="base_model",
        hint="Choose a base of plain safetensors and JSON files that transformers runs by "
        "itself. If transformers knows the architecture, you can delete `auto_map` in a "
        "copy of the folder.",
    )
