"""Stage export: merges the adapter into its base and writes a quantized GGUF and a Modelfile.

    python -m loco_trainer.export --spec adapters/math/runs/JOB/export/a1/spec.json --out /tmp/replay

One pass over the base's weights, each merged, quantized and written in turn (docs/adr/0007): on the
GPU where it has memory left, else on the CPU. Nothing is downloaded but a base model of kind `hub`
that is not cached yet; no compiler, no package manager, no 16-bit file on the way.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loco.contracts.errors import ExportFailed
from loco.contracts.files import sha256_of, sync_folder, write_text
from loco.contracts.modelfiles import quoted
from loco.contracts.results import ExportResult, Perplexity
from loco.contracts.serving import REFERENCE, ServingReference
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
    from loco_trainer.gguf.head import Contents

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
    """Writes gguf/unsloth.<QUANT>.gguf, Modelfile and serving_reference.json; the GGUF has answered.

    With `base` the base too, as gguf/base.<QUANT>.gguf: the same file but for the adapter.
    """
    share_cpus()
    adapter = _adapter_folder(inputs)
    with gpu_lock(inputs.locks_dir, emit), _temporary(out_dir) as temporary:
        base = find.resolve(spec.base_model, "merge", inputs.models_dir, emit)
        require_free(out_dir, _size(base, spec), f"export to {spec.quantization}")
        emit.check_stop()
        embedding = _Embedding.of(spec, inputs)
        folder = temporary / spec.model_name  # the converter writes its name into the GGUF
        job = _job(spec, _model_folder(folder, base, adapter, embedding), adapter)
        exported = _write(spec, job, embedding, emit)
        checked = _check(spec, inputs, exported, emit)
        base_gguf = _write_base(spec, job, checked.contents, emit) if spec.base else None
        name = _place(spec, exported.gguf, checked, out_dir)
        base_name = _move(base_gguf, out_dir) if base_gguf else None
    emit.progress(message="exported", percent=100.0, last=True)
    files = [name, *((base_name,) if base_name else ()), "Modelfile", REFERENCE]
    return ExportResult(
        seconds=0,
        files={file: file for file in files},
        gguf=name,
        quantization=spec.quantization,
        size=(out_dir / name).stat().st_size,
        sha256=checked.sha256,
        weights_sha256=checked.weights_sha256,
        tensor_types=checked.contents.tensor_types,
        tensors=checked.contents.tensors,
        system=checked.system,
        sample_prompt=checked.reference.prompts[0].messages[-1]["content"],
        sample_answer=checked.reference.prompts[0].answer or "",
        base_gguf=base_name,
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


@dataclass
class _Embedding:
    """Makes the chat templates of the GGUF of those of the training."""

    #: Whether the training's prompts ask for thoughts.
    think: bool
    title: str
    #: Template in the GGUF to that of the training.
    trained: dict[str, str]

    @classmethod
    def of(cls, spec: ExportSpec, inputs: Inputs) -> "_Embedding":
        from loco_trainer.gguf import reference

        title = f"{spec.model_name}, job {inputs.job_id}, {datetime.now(UTC).date()}"
        return cls(reference.trained_branch(inputs), title, {})

    def __call__(self, text: str) -> str:
        from loco_trainer.data import served

        changed = served.embedded(text, think=self.think, title=self.title)
        self.trained[changed] = text
        return changed


def _model_folder(folder: Path, base: Path, adapter: Path, embedding: _Embedding) -> Path:
    from loco_trainer.gguf import folder as folders

    return folders.make(folder, base, adapter, embedding)


def _job(spec: ExportSpec, folder: Path, adapter: Path) -> parent.Job:
    return parent.Job(
        folder=str(folder),
        adapter=str(adapter),
        target=str(folder.parent / f"unsloth.{spec.quantization}.gguf"),
        name=spec.model_name,
        outtype=_outtype(folder, spec),
        quantization=spec.quantization,
    )


@dataclass(frozen=True)
class _Exported:
    """The written file, not yet looked at."""

    gguf: Path
    written: parent.Written
    #: With the template of the training, not the one in the GGUF.
    tokenizer: Any
    embedded: str
    think: bool
    #: Of this process and the one that wrote, which were there together.
    peak_ram_bytes: int


def _write(spec: ExportSpec, job: parent.Job, embedding: _Embedding, emit: Emitter) -> _Exported:
    emit.progress(message="reading tokenizer and metadata", percent=0.0, last=True)
    with ThreadPoolExecutor(1) as background:
        # its imports, and those of what comes after, take seconds that the child needs anyway
        loading = background.submit(_load_tokenizer, Path(job.folder))
        written = parent.write(job, emit)
        tokenizer = loading.result()
    emit.log(f"Merged {written.merged} adapted layers into {spec.base_model.merge}.")
    together = written.peak_ram_bytes + peak_ram_bytes()
    embedded = tokenizer.chat_template
    tokenizer.chat_template = embedding.trained.get(embedded)
    return _Exported(Path(job.target), written, tokenizer, embedded, embedding.think, together)


@dataclass(frozen=True)
class _Checked:
    """What the finished file turned out to be."""

    contents: "Contents"
    sha256: str
    weights_sha256: str
    #: The system prompt of training, which the Modelfile and register send.
    system: str | None
    reference: ServingReference
    perplexity: Perplexity | None
    seconds: float
    peak_ram_bytes: int


def _check(spec: ExportSpec, inputs: Inputs, exported: _Exported, emit: Emitter) -> _Checked:
    """Reads the GGUF back, has it answer, and measures it on the validation rows.

    Raises:
        ExportFailed: it is not what was planned, or says nothing.
    """
    from loco_trainer.data.template import Template
    from loco_trainer.gguf import check, head, perplexity, reference

    emit.progress(message="checking the GGUF", percent=80.0, last=True)
    started = time.monotonic()
    gguf = exported.gguf
    with ThreadPoolExecutor(2) as background:
        # hashing and waiting for the disk cost no CPU the check needs
        digest = background.submit(_settled_digest, gguf)
        weights = background.submit(head.weights_digest, gguf)
        contents = head.read(gguf)
        _compare(contents, exported.written.tensors, exported.embedded)
        template = Template.of(exported.tokenizer, spec.base_model.system)
        measured = perplexity.choose(inputs, template, size=gguf.stat().st_size, emit=emit)
        longest = spec.num_ctx - reference.NUM_PREDICT
        said = reference.conversations(inputs, template, longest=longest)
        asked = max(len(template.encode(template.prompt(messages))) for messages in said.values())
        context = asked + reference.longest_answer(spec.num_predict) + 16
        with check.loaded(gguf, context=max(512, measured.longest, context)) as model:
            prompts = reference.prompts(
                said, template, exported.embedded, model, think=exported.think
            )
            prompts = reference.answered(
                prompts,
                model,
                spec.base_model.stop,
                emit,
                num_predict=spec.num_predict,
                num_ctx=spec.num_ctx,
            )
            _require_answer(prompts[0].answer)
            emit.progress(message="measuring the GGUF", percent=90.0, last=True)
            change = measured.against(model, emit)
        seen = reference.reference(gguf, contents, prompts)
        digests = digest.result(), weights.result()
    seconds = round(time.monotonic() - started, 3)
    return _Checked(contents, *digests, template.system, seen, change, seconds, peak_ram_bytes())


def _write_base(spec: ExportSpec, job: parent.Job, contents: "Contents", emit: Emitter) -> Path:
    """The base through the same export: what eval compares with to leave quantization out.

    Raises:
        ExportFailed: it is not the model's file but for the adapter.
    """
    from loco_trainer.gguf import head

    name = f"{spec.model_name}-base"
    folder = Path(job.folder).rename(Path(job.folder).with_name(name))
    target = folder.parent / f"base.{spec.quantization}.gguf"
    emit.log(f"Writing {spec.base_model.merge} without the adapter.")
    changed = {"folder": str(folder), "adapter": "", "target": str(target), "name": name}
    parent.write(replace(job, **changed), emit)
    found = head.read(target)
    if found != contents:
        raise ExportFailed(
            f"The exported base is not like the exported model: {found}, {contents}.",
            hint="The attempt's log has the converter's own words.",
        )
    _settled_digest(target)
    return target


def _place(spec: ExportSpec, gguf: Path, checked: _Checked, out_dir: Path) -> str:
    """Moves the checked file to its place and writes what goes with it; its name in the stage."""
    name = _move(gguf, out_dir)
    write_text(out_dir / "Modelfile", modelfile(spec, gguf.name, checked.system))
    write_text(out_dir / REFERENCE, checked.reference.model_dump_json(indent=1) + "\n")
    return name


def _move(gguf: Path, out_dir: Path) -> str:
    name = f"gguf/{gguf.name}"
    target = out_dir / name
    target.parent.mkdir(exist_ok=True)
    gguf.rename(target)
    sync_folder(target.parent)
    return name


def _size(base: Path, spec: ExportSpec) -> int:
    """Upper bound of the GGUFs' bytes; nothing else of size is written."""
    share = _SHARE_OF_16_BITS[spec.quantization]
    return (int(find.weight_bytes(base) * share) + _METADATA_BYTES) * (1 + spec.base)


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
        *(f"PARAMETER stop {quoted(stop, short=True)}" for stop in base.stop),
    ]
    if system is not None:
        lines.append(f"SYSTEM {quoted(system)}")
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

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


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


def _require_answer(text: str | None) -> None:
    """An export that says nothing does not commit."""
    if not (text or "").strip():
        raise ExportFailed(
            "The exported GGUF answers its first question with nothing.",
            hint="Look at the training loss: the adapter may have been trained too hard.",
        )


if __name__ == "__main__":
    sys.exit(main(Stage.EXPORT, run))
