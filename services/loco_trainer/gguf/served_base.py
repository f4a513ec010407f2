"""The GGUF that adapters of one base are served on: written once, and kept beside the base models.

It is the base through our own export, with the chat template of the training in it, so that what is
served on it renders every prompt as in training (docs/adr/0027). Another tokenizer, template,
quantization or release of this program makes another file.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from loco.contracts.files import sha256_of, sync_folder, write_text
from loco.contracts.serving import SERVED_BASE, SERVED_FOLDER, ServedBase
from loco.contracts.specs import ExportSpec
from loco.contracts.stages import STAGE_VERSIONS, Stage
from loco_trainer.bases.find import locked


@dataclass(frozen=True)
class Kept:
    """What is known of a finished file."""

    sha256: str
    size: int
    tensors: int


def place(spec: ExportSpec, folder: Path, outtype: str, models_dir: Path) -> Path:
    """Where the GGUF of a base is kept.

    Args:
        spec: names the base and the quantization.
        folder: what the converter reads: config, tokenizer and template, and links to the weights.
        outtype: the converter's type for weights.
        models_dir: the folder of base models.
    """
    said = [outtype, spec.quantization, STAGE_VERSIONS[Stage.EXPORT]]
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            weights = file.resolve()
            seen = weights.stat()
            said += [str(weights), seen.st_size, seen.st_mtime_ns]
        else:
            said += [file.name, sha256_of(file)]
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
    name = f"{spec.base_model.name}.{digest}.{spec.quantization}.gguf"
    return models_dir / SERVED_FOLDER / name


def kept(path: Path) -> Kept | None:
    """What is known of a file that an earlier export finished; None: there is none, or it was cut.

    It counts as used now, so that it stays until the export that asks has said so.
    """
    try:
        known = Kept(**json.loads(_facts(path).read_bytes()))
        if path.stat().st_size != known.size:
            return None
        os.utime(path)
        return known
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Where the file is written meanwhile; nobody else writes one beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        folder = path.parent / ".part"
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
        folder.mkdir()
        try:
            yield folder / "base.gguf"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def keep(part: Path, path: Path, tensors: int) -> Kept:
    """Puts a written and checked file in its place.

    Args:
        part: the file, on the same disk.
        path: its place.
        tensors: how many it has.
    """
    with part.open("rb") as file:
        os.fsync(file.fileno())
    known = Kept(sha256_of(part), part.stat().st_size, tensors)
    part.replace(path)
    write_text(_facts(path), json.dumps(asdict(known)) + "\n")
    sync_folder(path.parent)
    return known


def served(spec: ExportSpec, path: Path, known: Kept, models_dir: Path) -> ServedBase:
    """What register needs to know of it."""
    return ServedBase(
        model=f"{SERVED_BASE}:{spec.base_model.name}-{known.sha256[:12]}",
        blob=f"sha256:{known.sha256}",
        path=str(path.relative_to(models_dir)),
        size=known.size,
    )


def _facts(path: Path) -> Path:
    return path.with_suffix(".json")
