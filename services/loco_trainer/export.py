"""Stage export: merges the adapter into its base and writes a quantized GGUF and a Modelfile.

    python -m loco_trainer.export --spec adapters/math/runs/JOB/export/a1/spec.json --out /tmp/replay

The same code on a CPU and a GPU box. Nothing is downloaded but a base model of kind `hub` that is
not cached yet; no compiler, no package manager. Intermediates are deleted.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loco.artifacts import sha256_of, sync_folder, write_text
from loco.errors import ExportFailed
from loco.gpu_lock import gpu_lock
from loco.program import Emitter, main
from loco.results import ExportResult
from loco.specs import BaseModelSpec, ExportSpec, Inputs
from loco.stages import Stage
from loco_trainer import base_models
from loco_trainer.disk import require_free
from loco_trainer.threads import share_cpus

if TYPE_CHECKING:
    from loco_trainer.gguf_file import Contents

SAMPLE_PROMPT = "What is 2 + 2?"
_SAMPLE_TOKENS = 128
_ADAPTER = "train/checkpoints/"


def run(spec: ExportSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> ExportResult:
    """Writes gguf/unsloth.<QUANT>.gguf and Modelfile; the GGUF has answered once."""
    share_cpus()
    with gpu_lock(inputs.locks_dir, emit):
        return _export(spec, inputs, out_dir, emit)


def _export(spec: ExportSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> ExportResult:
    base = base_models.resolve(spec.base_model, "merge", inputs.models_dir, emit)
    # At the peak the merged weights and the 16-bit GGUF lie side by side; then the quantized one
    # takes the merged weights' place.
    require_free(out_dir, 2 * base_models.weight_bytes(base), "export (merged weights and GGUF)")
    temporary = out_dir / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        return _write(spec, base, _adapter_folder(inputs), temporary, emit)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    spec: ExportSpec, base: Path, adapter: Path, temporary: Path, emit: Emitter
) -> ExportResult:
    from loco_trainer import gguf_file

    clock = _Clock()
    merged = _merge(spec, base, adapter, temporary, emit)
    tokenizer = _load_tokenizer(merged)
    merge_seconds = clock.lap()

    emit.progress(message="converting to GGUF", percent=30.0, last=True)
    sixteen = temporary / "sixteen.gguf"
    outtype = _outtype(base, spec)
    gguf_file.convert(merged, sixteen, outtype=outtype, name=spec.model_name, emit=emit)
    shutil.rmtree(merged)
    before = gguf_file.read(sixteen)
    convert_seconds = clock.lap()

    emit.progress(message=f"quantizing to {spec.quantization}", percent=60.0, last=True)
    target = temporary.parent / "gguf" / f"unsloth.{spec.quantization}.gguf"
    quantized = temporary / target.name
    if spec.quantization == "F16":
        sixteen.rename(quantized)  # the converter has written it as such
    else:
        gguf_file.quantize(sixteen, quantized, spec.quantization)
        sixteen.unlink()
    quantize_seconds = clock.lap()
    emit.check_stop()

    emit.progress(message="checking the GGUF", percent=90.0, last=True)
    contents = gguf_file.read(quantized)
    _check(contents, before, tokenizer.chat_template)
    sample = _sample(quantized, spec.base_model, tokenizer)
    _settle(quantized, target)
    write_text(temporary.parent / "Modelfile", modelfile(spec, target.name))
    emit.progress(message="exported", percent=100.0, last=True)
    name = f"gguf/{target.name}"
    return ExportResult(
        seconds=0,
        files={name: name, "Modelfile": "Modelfile"},
        gguf=name,
        quantization=spec.quantization,
        size=target.stat().st_size,
        sha256=sha256_of(target),
        tensor_types=contents.tensor_types,
        tensors=contents.tensors,
        sample_prompt=SAMPLE_PROMPT,
        sample_answer=sample,
        merge_seconds=merge_seconds,
        convert_seconds=convert_seconds,
        quantize_seconds=quantize_seconds,
    )


def _merge(spec: ExportSpec, base: Path, adapter: Path, temporary: Path, emit: Emitter) -> Path:
    """A Hugging Face folder of the base with the adapter merged in and training's tokenizer."""
    from loco_trainer import merge

    def report(done: int, total: int) -> None:
        emit.check_stop()
        emit.progress(message="merging", percent=round(30 * done / max(total, 1), 2))

    merged = temporary / "merged"
    merged.mkdir()
    layers = merge.merge(base, adapter, merged, report)
    emit.log(f"Merged {len(layers)} adapted layers into {spec.base_model.merge}.")
    # tokenizer and chat template are those of training; other vocabulary files the base's
    for folder in (base, adapter):
        for pattern in ("tokenizer*", "*.jinja", "vocab.json", "merges.txt", "special_tokens*"):
            for file in folder.glob(pattern):
                shutil.copyfile(file, merged / file.name)
    return merged


def _settle(quantized: Path, target: Path) -> None:
    """Moves the finished GGUF to its place, durably."""
    with quantized.open("rb") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(exist_ok=True)
    quantized.rename(target)
    sync_folder(target.parent)


def modelfile(spec: ExportSpec, gguf: str) -> str:
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
    if base.system is not None:
        lines.append(f'SYSTEM """{base.system}"""')
    return "\n".join(lines) + "\n"


class _Clock:
    """Seconds of one step after the other."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last = self._last, time.monotonic()
        return round(self._last - last, 3)


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
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _outtype(base: Path, spec: ExportSpec) -> Literal["f16", "bf16"]:
    """The 16-bit type that keeps the base's values; an F16 export is written directly."""
    config = base_models.read_config(base)
    dtype = config.get("dtype") or config.get("torch_dtype")
    return "bf16" if dtype == "bfloat16" and spec.quantization != "F16" else "f16"


def _check(contents: "Contents", before: "Contents", template: str) -> None:
    """Compares the quantized GGUF with the 16-bit one and with the training tokenizer."""
    faults = []
    if contents.tensors != before.tensors:
        faults.append(f"it has {contents.tensors} tensors, the 16-bit GGUF {before.tensors}")
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


def _sample(path: Path, base: BaseModelSpec, tokenizer: Any) -> str:
    """What the GGUF answers; an export that says nothing does not commit."""
    from loco_trainer import gguf_file, rows

    messages = [{"role": "user", "content": SAMPLE_PROMPT}]
    if base.system is not None:
        messages.insert(0, {"role": "system", "content": base.system})
    text, _ended = gguf_file.answer(
        path, rows.prompt_text(messages, tokenizer), tokens=_SAMPLE_TOKENS
    )
    if not text.strip():
        raise ExportFailed(
            f"The exported GGUF answers {SAMPLE_PROMPT!r} with nothing.",
            hint="Look at the training loss: the adapter may have been trained too hard.",
        )
    return text


if __name__ == "__main__":
    sys.exit(main(Stage.EXPORT, run))
