"""The folder that llama.cpp's converter reads: the base's config and weights, training's tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from loco.contracts.files import write_text
from loco_trainer.data.template import settled

_CONFIG = "tokenizer_config.json"


def make(folder: Path, base: Path, tokenizer: Path, embedded: Callable[[str], str]) -> Path:
    """Fills a new folder.

    Args:
        folder: the converter writes its name into the GGUF.
        base: the base's folder; its weights are linked.
        tokenizer: where the tokenizer and chat template of the training are.
        embedded: makes the template that goes into the GGUF of the training's.
    """
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix in (".safetensors", ".json"):
            (folder / file.name).symlink_to(file.resolve())
    # tokenizer and chat template are those of training; other vocabulary files the base's
    for source in (base, tokenizer):
        for pattern in ("tokenizer*", "*.jinja", "vocab.json", "merges.txt", "special_tokens*"):
            for file in source.glob(pattern):
                if file.suffix not in (".json", ".jinja", ".txt", ".model"):
                    continue  # no program, whatever its name begins with
                (folder / file.name).unlink(missing_ok=True)
                shutil.copyfile(file, folder / file.name)
    _keep_class(folder / _CONFIG, base / _CONFIG)
    _embed(
        folder, lambda text: embedded(settled(text))
    )  # older adapters have it as the base has it
    return folder


def _keep_class(saved: Path, own: Path) -> None:
    """Names the tokenizer's class as the base does: the converter goes by it (Phi-4's is GPT-2's).

    transformers loads some classes as a general one and saves that name.
    """
    if not (saved.is_file() and own.is_file()):
        return
    config, original = json.loads(saved.read_bytes()), json.loads(own.read_bytes())
    if "tokenizer_class" in original:
        config["tokenizer_class"] = original["tokenizer_class"]
        write_text(saved, json.dumps(config, ensure_ascii=False, indent=2))


def _embed(folder: Path, change: Callable[[str], str]) -> None:
    for file in folder.glob("*.jinja"):
        write_text(file, change(file.read_text(encoding="utf-8")))
    path = folder / _CONFIG
    if not path.is_file():
        return
    config = json.loads(path.read_bytes())
    match config.get("chat_template"):
        case str(text):
            config["chat_template"] = change(text)
        case list(named):
            config["chat_template"] = [{**t, "template": change(t["template"])} for t in named]
        case _:
            return
    write_text(path, json.dumps(config, ensure_ascii=False, indent=2))
