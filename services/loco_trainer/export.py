"""Stage export: merges the adapter into its base and writes a quantized GGUF and a Modelfile.

    python -m loco_trainer.export --spec adapters/math/runs/JOB/export/a1/spec.json --out /tmp/replay

One pass over the base's weights, each merged, quantized and written in turn (docs/adr/0007): on the
GPU where it has memory left, else on the CPU. Nothing is downloaded but a base model of kind `hub`
that is not cached yet; no compiler, no package manager, no 16-bit file on the way.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loco.contracts.errors import ExportFailed
from loco.contracts.files import sha256_of, sync_folder, write_text
from loco.contracts.results import ExportResult, Perplexity
from loco.contracts.specs import ExportSpec, Inputs, Quantization
from loco.contracts.stages import Stage
from loco.stage.gpu_lock import gpu_lock
from loco.stage.program import Emitter, main
from loco_trainer.bases import find
from loco_trainer.gguf import parent
from loco_trainer.machine.disk import require_free
from loco_trainer.machine.imports import hide
from loco_trainer.machine.ram import peak_ram_bytes
from loco_trainer.machine.threads import share_cpus

if TYPE_CHECKING:
    from loco_trainer.gguf.check import GgufModel
    from loco_trainer.gguf.head import Contents

SAMPLE_PROMPT = "What is 2 + 2?"
_SAMPLE_TOKENS = 32
#: Size against 16-bit weights at most: small models keep larger types for want of rows of 256.
_SHARE_OF_16_BITS: dict[Quantization, float] = {
    "Q4_K_M": 0.55,
    "Q5_K_M": 0.55,
    "Q6_K": 0.58,
    "Q8_0": 0.58,
    "F16": 1.02,
}
#: A large vocabulary with its merges.
_METADATA_BYTES = 32 * 10**6
_ADAPTER = "train/checkpoints/"


def run(spec: ExportSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> ExportResult:
    """Writes gguf/unsloth.<QUANT>.gguf and Modelfile; the GGUF has answered once."""
    share_cpus()
    adapter = _adapter_folder(inputs)
    with gpu_lock(inputs.locks_dir, emit), _temporary(out_dir) as temporary:
        base = find.resolve(spec.base_model, "merge", inputs.models_dir, emit)
        require_free(out_dir, _size(base, spec), f"export to {spec.quantization}")
        emit.check_stop()
        exported = _write(spec, _job(spec, base, adapter, temporary), emit)
        checked = _check(spec, inputs, exported, emit)
        name = _place(spec, exported.gguf, checked.system, out_dir)
    emit.progress(message="exported", percent=100.0, last=True)
    return ExportResult(
        seconds=0,
        files={name: name, "Modelfile": "Modelfile"},
        gguf=name,
        quantization=spec.quantization,
        size=(out_dir / name).stat().st_size,
        sha256=checked.sha256,
        tensor_types=checked.contents.tensor_types,
        tensors=checked.contents.tensors,
        system=checked.system,
        sample_prompt=SAMPLE_PROMPT,
        sample_answer=checked.sample,
        device=exported.written.device,
        read_seconds=exported.written.read_seconds,
        quantize_seconds=exported.written.quantize_seconds,
        write_seconds=exported.written.write_seconds,
        check_seconds=checked.seconds,
        peak_ram_gb=round(max(exported.peak_ram_bytes, checked.peak_ram_bytes) / 1e9, 3),
        perplexity=checked.perplexity,
    )


@contextmanager
def _temporary(out_dir: Path) -> Iterator[Path]:
    """A folder of the attempt's own, empty at first and gone at the end."""
    folder = out_dir / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _job(spec: ExportSpec, base: Path, adapter: Path, temporary: Path) -> parent.Job:
    return parent.Job(
        folder=str(_model_folder(spec, base, adapter, temporary)),
        adapter=str(adapter),
        target=str(temporary / f"unsloth.{spec.quantization}.gguf"),
        name=spec.model_name,
        outtype=_outtype(base, spec),
        quantization=spec.quantization,
    )


@dataclass(frozen=True)
class _Exported:
    """The written file, not yet looked at."""

    gguf: Path
    written: parent.Written
    tokenizer: Any
    #: Of this process and the one that wrote, which were there together.
    peak_ram_bytes: int


def _write(spec: ExportSpec, job: parent.Job, emit: Emitter) -> _Exported:
    emit.progress(message="reading tokenizer and metadata", percent=0.0, last=True)
    with ThreadPoolExecutor(1) as background:
        # its imports, and those of what comes after, take seconds that the child needs anyway
        loading = background.submit(_load_tokenizer, Path(job.folder))
        written = parent.write(job, emit)
        tokenizer = loading.result()
    emit.log(f"Merged {written.merged} adapted layers into {spec.base_model.merge}.")
    together = written.peak_ram_bytes + peak_ram_bytes()
    return _Exported(Path(job.target), written, tokenizer, together)


@dataclass(frozen=True)
class _Checked:
    """What the finished file turned out to be."""

    contents: "Contents"
    sha256: str
    #: The system prompt of training, which the Modelfile and register send.
    system: str | None
    sample: str
    perplexity: Perplexity | None
    seconds: float
    peak_ram_bytes: int


def _check(spec: ExportSpec, inputs: Inputs, exported: _Exported, emit: Emitter) -> _Checked:
    """Reads the GGUF back, has it answer, and measures it on the validation rows.

    Raises:
        ExportFailed: it is not what was planned, or says nothing.
    """
    from loco_trainer.data.template import Template
    from loco_trainer.gguf import check, head, perplexity

    emit.progress(message="checking the GGUF", percent=80.0, last=True)
    started = time.monotonic()
    gguf, tokenizer = exported.gguf, exported.tokenizer
    with ThreadPoolExecutor(1) as background:
        # hashing and waiting for the disk cost no CPU the check needs
        digest = background.submit(_settled_digest, gguf)
        contents = head.read(gguf)
        _compare(contents, exported.written.tensors, tokenizer.chat_template)
        template = Template.of(tokenizer, spec.base_model.system)
        measured = perplexity.choose(inputs, template, size=gguf.stat().st_size, emit=emit)
        prompt = template.prompt([{"role": "user", "content": SAMPLE_PROMPT}])
        asked = len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) + _SAMPLE_TOKENS
        with check.loaded(gguf, context=max(512, measured.longest, asked)) as model:
            sample = _sample(model, prompt)
            emit.progress(message="measuring the GGUF", percent=90.0, last=True)
            change = measured.against(model, emit)
        sha256 = digest.result()
    seconds = round(time.monotonic() - started, 3)
    return _Checked(contents, sha256, template.system, sample, change, seconds, peak_ram_bytes())


def _place(spec: ExportSpec, gguf: Path, system: str | None, out_dir: Path) -> str:
    """Moves the checked file to its place and writes the Modelfile; its name in the stage."""
    name = f"gguf/{gguf.name}"
    target = out_dir / name
    target.parent.mkdir(exist_ok=True)
    gguf.rename(target)
    sync_folder(target.parent)
    write_text(out_dir / "Modelfile", modelfile(spec, gguf.name, system))
    return name


def _model_folder(spec: ExportSpec, base: Path, adapter: Path, temporary: Path) -> Path:
    """What the converter reads: the base's config, links to its weights, training's tokenizer."""
    folder = temporary / spec.model_name  # the converter writes its name into the GGUF
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix in (".safetensors", ".json"):
            (folder / file.name).symlink_to(file.resolve())
    # tokenizer and chat template are those of training; other vocabulary files the base's
    for source in (base, adapter):
        for pattern in ("tokenizer*", "*.jinja", "vocab.json", "merges.txt", "special_tokens*"):
            for file in source.glob(pattern):
                (folder / file.name).unlink(missing_ok=True)
                shutil.copyfile(file, folder / file.name)
    _settle(folder)
    return folder


def _settle(folder: Path) -> None:
    """Settles the chat template the converter reads: older adapters have it as the base has it."""
    from loco_trainer.data.template import settled

    for file in folder.glob("*.jinja"):
        write_text(file, settled(file.read_text(encoding="utf-8")))
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_bytes())
    match config.get("chat_template"):
        case str(text):
            config["chat_template"] = settled(text)
        case list(named):
            config["chat_template"] = [{**t, "template": settled(t["template"])} for t in named]
        case _:
            return
    write_text(path, json.dumps(config, ensure_ascii=False, indent=2))


def _size(base: Path, spec: ExportSpec) -> int:
    """Upper bound of the GGUF's bytes; nothing else is written."""
    share = _SHARE_OF_16_BITS[spec.quantization]
    return int(find.weight_bytes(base) * share) + _METADATA_BYTES


def _settled_digest(path: Path) -> str:
    """SHA-256 of a file that is then safely on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_of(path)


def modelfile(spec: ExportSpec, gguf: str, system: str | None) -> str:
    """The Modelfile that makes the same model by hand: `ollama create NAME -f Modelfile`.

    It has no TEMPLATE: Ollama takes the chat template embedded in the GGUF.
    """
    base = spec.base_model
    lines = [
        f"# {spec.model_name}: {base.name} with the adapter merged in, {spec.quantization}.",
        f"FROM ./gguf/{gguf}",
        f"PARAMETER temperature {spec.temperature}",
        f"PARAMETER num_ctx {spec.num_ctx}",
        f"PARAMETER num_predict {spec.num_predict}",
        *(f"PARAMETER stop {json.dumps(stop)}" for stop in base.stop),
    ]
    if system is not None:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def _adapter_folder(inputs: Inputs) -> Path:
    """The folder the train stage's committed files lie in."""
    path = inputs.files.get(f"{_ADAPTER}adapter_model.safetensors")
    if path is None or not path.is_file():
        raise ExportFailed(
            f"There is no trained adapter to export ({path or 'none given'}).",
            hint="Run stage train first, or name a job that has: `from_job`.",
        )
    return path.parent


def _load_tokenizer(folder: Path) -> Any:
    hide("torchao", "sklearn")
    import_module("loco_trainer.gguf.head")
    import_module("loco_trainer.gguf.check")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _outtype(base: Path, spec: ExportSpec) -> Literal["f16", "bf16"]:
    """The 16-bit type that keeps the base's values; an F16 export is written directly."""
    config = find.read_config(base)
    dtype = config.get("dtype") or config.get("torch_dtype")
    return "bf16" if dtype == "bfloat16" and spec.quantization != "F16" else "f16"


def _compare(contents: "Contents", tensors: int, template: str) -> None:
    """Compares the GGUF read back with what was planned and with the training tokenizer."""
    faults = []
    if contents.tensors != tensors:
        faults.append(f"it has {contents.tensors} tensors, {tensors} were planned")
    if contents.chat_template != template:
        faults.append("its chat template is not the one of training")
    if contents.vocabulary != contents.embedding_rows:
        faults.append(
            f"its vocabulary has {contents.vocabulary} tokens for {contents.embedding_rows} "
            "embedding rows"
        )
    if faults:
        raise ExportFailed(
            f"The exported GGUF is not sound: {'; '.join(faults)}.",
            hint="The base model's tokenizer or architecture may be unknown to the converter.",
        )


def _sample(model: "GgufModel", prompt: str) -> str:
    """What the GGUF answers; an export that says nothing does not commit."""
    text, _ended = model.answer(prompt, tokens=_SAMPLE_TOKENS)
    if not text.strip():
        raise ExportFailed(
            f"The exported GGUF answers {SAMPLE_PROMPT!r} with nothing.",
            hint="Look at the training loss: the adapter may have been trained too hard.",
        )
    return text


if __name__ == "__main__":
    sys.exit(main(Stage.EXPORT, run))
