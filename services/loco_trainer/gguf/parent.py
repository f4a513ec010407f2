"""GGUF files, written by a child process in one pass.

Nothing is downloaded, compiled or installed here: the converter lies in its own folder of the
training venv (it brings a `gguf` module newer than PyPI's), the quantizer is in llama-cpp-python.
"""

import ast
import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loco.contracts.errors import DiskFull, ExportFailed, TrainingFailed
from loco.stage.deathsig import dying_with_us
from loco.stage.environment import child_environment
from loco.stage.program import Emitter

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to write."""

    #: Config, training's tokenizer, and the base's weights or links to them.
    folder: str
    #: Folder of adapter_config.json and adapter_model.safetensors; empty: the base as it is.
    adapter: str
    #: The GGUF of the whole model; files of the same stem beside it are scratch.
    target: str
    #: `general.name`.
    name: str
    #: `f16` or `bf16`: the type the converter would give weights.
    outtype: str
    #: Q4_K_M, …, F16: what llama.cpp's quantizer would be asked for.
    quantization: str
    #: Where the adapter goes as a GGUF of its own; empty: nowhere.
    lora: str = ""
    #: Whether the adapter is merged into `target`; else that is the base as it is.
    merge: bool = True
    #: Whether `target` is written; an adapter can be written alone.
    whole: bool = True
    #: `auto`: a GPU where there is one with free memory; `cpu`; `torch-cpu`: the GPU's code on a CPU.
    device: str = "auto"


@dataclass(frozen=True)
class Written:
    """How the writing went."""

    device: str
    merged: int  # layers with an adapter
    tensors: int
    read_seconds: float
    quantize_seconds: float
    write_seconds: float
    peak_ram_bytes: int  # of the child
    lora_seconds: float = 0.0
    #: Why the adapter cannot be a GGUF of its own; empty: it is one, or was not asked for.
    not_carried: str = ""


def check_architecture(config: dict[str, Any]) -> None:
    """Refuses a base that the converter does not know, before it is trained for nothing.

    The table of architectures is read from the converter's source: importing it takes seconds. Where
    the converter is missing nothing is refused; export says so.

    Args:
        config: the base's config.json.

    Raises:
        TrainingFailed: names the architecture.
    """
    source = _converter() / "conversion" / "__init__.py"
    if not source.is_file():
        return
    known: set[str] = set()
    for line in ast.parse(source.read_text()).body:
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "TEXT_MODEL_MAP":
            assert line.value is not None
            known = set(ast.literal_eval(line.value))
    levels = (config, config.get("text_config") or {})
    named = [name for level in levels for name in (level.get("architectures") or [])[:1]]
    if named and not known.intersection(named):
        raise TrainingFailed(
            f"The GGUF converter does not know the architecture {named[0]}, so the trained "
            "model could not be exported.",
            param="base_model",
            hint="Choose a base model whose architecture llama.cpp supports.",
        )


def write(job: Job, emit: Emitter) -> Written:
    """Has a child process write base + adapter as a GGUF (`loco_trainer.gguf.child`).

    The file at `job.target` is complete but not yet on the disk for certain: fsync is the caller's.

    Raises:
        ExportFailed: the converter is missing, refuses the model, or the adapter does not fit.
        DiskFull: the disk filled up on the way.
        Stopped: a stop was asked for; the child is gone.
    """
    converter = _converter()
    if not (converter / "convert_hf_to_gguf.py").is_file():
        raise ExportFailed(
            f"The GGUF converter is missing: {converter}.",
            hint="Run `make setup`. It installs services/requirements/converter.txt there.",
        )
    target = Path(job.target)
    log, description = target.with_suffix(".log"), target.with_suffix(".json")
    description.write_text(json.dumps(asdict(job)))
    paths = (str(converter), *(p for p in (os.environ.get("PYTHONPATH"),) if p))
    environment = {
        **child_environment(),
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
    }
    said: dict[str, Any] = {}
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "loco_trainer.gguf.child", str(description)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=dying_with_us(),  # noqa: PLW1509 (it must not outlive a killed stage program)
        ) as child,
    ):
        try:
            for words in _lines(child, emit):
                said |= words
        except BaseException:
            child.kill()
            raise
    emit.check_stop()
    noise = log.read_text(errors="replace")
    with contextlib.suppress(OSError):  # a full disk is what the child may have to tell of
        sys.stderr.write(noise)
        sys.stderr.flush()
    if error := said.get("error"):
        kind = DiskFull if error["disk"] else ExportFailed
        raise kind(error["message"], hint=error["hint"])
    if child.returncode != 0 or "result" not in said:
        last = next((line for line in reversed(noise.splitlines()) if line.strip()), "no output")
        raise ExportFailed(
            f"Writing the GGUF ended with code {child.returncode}: {last}",
            hint="The attempt's log has the whole output. Code -9 means that the machine ran out "
            "of RAM.",
        )
    return Written(**said["result"])


def _lines(child: subprocess.Popen[bytes], emit: Emitter) -> Iterator[dict[str, Any]]:
    """What the child says, as it says it; its progress and log lines go on to the user."""
    assert child.stdout is not None
    pending = b""
    while True:
        emit.check_stop()
        if not select.select([child.stdout], [], [], _POLL_SECONDS)[0]:
            continue
        chunk = os.read(child.stdout.fileno(), 1 << 16)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            words = json.loads(line)
            if "log" in words:
                emit.log(words["log"])
            elif "done" in words:
                share = words["done"] / max(words["total"], 1)
                emit.progress(message="writing the GGUF", percent=round(10 + 70 * share, 2))
            else:
                yield words


def _converter() -> Path:
    return Path(sys.prefix) / "converter"
