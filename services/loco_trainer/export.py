"""Stage export: writes what a server takes: the merged model as a quantized GGUF, or the adapter's own.

    python -m loco_trainer.export --spec adapters/math/runs/JOB/export/a1/spec.json --out /tmp/replay

One pass over the base's weights, each merged, quantized and written in turn (docs/adr/0007): on the
GPU where it has memory left, else on the CPU. Nothing is downloaded but a base model of kind `hub`
that is not cached yet; no compiler, no package manager, no 16-bit file on the way. An adapter alone is
a GGUF of its own, served on a base that is written once (docs/adr/0027).
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loco.contracts.errors import ExportFailed
from loco.contracts.files import sha256_of, sync_folder, write_text
from loco.contracts.modelfiles import quoted
from loco.contracts.results import ExportResult, Perplexity
from loco.contracts.serving import ADAPTER_GGUF, REFERENCE, ServedBase, ServingReference
from loco.contracts.specs import ExportSpec, Inputs
from loco.contracts.stages import Stage
from loco.stage.gpu_lock import gpu_lock
from loco.stage.program import Emitter, main
from loco_trainer.gguf import writing
from loco_trainer.machine.ram import peak_ram_bytes
from loco_trainer.machine.threads import share_cpus

if TYPE_CHECKING:
    from loco_trainer.gguf.head import Contents


def run(spec: ExportSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> ExportResult:
    """Writes gguf/unsloth.<QUANT>.gguf, Modelfile and serving_reference.json; the GGUF has answered.

    As `format` says, gguf/adapter.gguf beside it or in its place. With `base` the base too, as
    gguf/base.<QUANT>.gguf: the same file but for the adapter.
    """
    share_cpus()
    adapter = writing.adapter_folder(inputs)
    with gpu_lock(inputs.locks_dir, emit), _temporary(out_dir) as temporary:
        exported = writing.Work(spec, inputs, adapter, out_dir, temporary, emit).write()
        checked = _check(spec, inputs, exported, emit)
        if checked.misfit:
            exported = replace(exported, adapter=None, format="merged", reason=checked.misfit)
        # the base that an adapter is served on is the same export without it
        base_gguf = (
            _write_base(spec, exported, checked, emit) if _asks_base(spec, exported) else None
        )
        written = [] if exported.base else [_move(exported.gguf, out_dir)]
        lora = _move(exported.adapter, out_dir) if exported.adapter else None
        files = [*written, *([lora] if lora else [])]
        name = files[0]
        _describe(spec, exported, checked, out_dir)
        base_name = _move(base_gguf, out_dir) if base_gguf else None
    emit.progress(message="exported", percent=100.0, last=True)
    files += [*((base_name,) if base_name else ()), "Modelfile", REFERENCE]
    return ExportResult(
        seconds=0,
        files={file: file for file in files},
        gguf=name,
        format=exported.format,
        format_reason=exported.reason,
        adapter_gguf=lora,
        adapter_size=(out_dir / lora).stat().st_size if lora else 0,
        adapter_sha256=checked.adapter_sha256,
        adapter_seconds=exported.written.lora_seconds,
        served_base=exported.base,
        base_reused=exported.base_reused,
        quantization=spec.quantization,
        size=(out_dir / name).stat().st_size,
        sha256=checked.sha256,
        weights_sha256=checked.weights_sha256,
        tensor_types=checked.tensor_types,
        tensors=sum(checked.tensor_types.values()),
        system=checked.system,
        sample_prompt=checked.reference.prompts[0].messages[-1]["content"],
        sample_answer=checked.reference.prompts[0].answer or "",
        base_asked=spec.base,
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


@dataclass(frozen=True)
class _Checked:
    """What the finished file turned out to be."""

    contents: "Contents"
    #: Of the file that is registered.
    sha256: str
    weights_sha256: str
    tensor_types: dict[str, int]
    adapter_sha256: str | None
    #: The system prompt of training, which the Modelfile and register send.
    system: str | None
    reference: ServingReference
    perplexity: Perplexity | None
    #: Why an adapter that nobody asked for is left out after all.
    misfit: str | None
    seconds: float
    peak_ram_bytes: int


def _asks_base(spec: ExportSpec, exported: writing.Exported) -> bool:
    return spec.base and exported.base is None


def _check(spec: ExportSpec, inputs: Inputs, exported: writing.Exported, emit: Emitter) -> _Checked:
    """Reads the GGUF back, has it answer, and measures it on the validation rows.

    An adapter on its base is looked at together; beside a merged model it has to fit it.

    Raises:
        ExportFailed: it is not what was planned, or says nothing.
    """
    from loco_trainer.data.template import Template
    from loco_trainer.gguf import check, head, perplexity, reference

    emit.progress(message="checking the GGUF", percent=80.0, last=True)
    started = time.monotonic()
    gguf, lora = exported.gguf, exported.adapter
    registered = lora if exported.base and lora else gguf
    with ThreadPoolExecutor(2) as background:
        # hashing and waiting for the disk cost no CPU the check needs
        digest = background.submit(_settled_digest, registered)
        weights = background.submit(head.weights_digest, registered)
        contents = head.read(gguf)
        _compare(contents, exported.tensors, exported.embedded)
        template = Template.of(exported.tokenizer, spec.base_model.system)
        measured = perplexity.choose(inputs, template, size=gguf.stat().st_size, emit=emit)
        longest = spec.num_ctx - reference.NUM_PREDICT
        said = reference.conversations(inputs, template, longest=longest)
        asked = max(len(template.encode(template.prompt(messages))) for messages in said.values())
        context = asked + reference.longest_answer(spec.num_predict) + 16
        room = max(512, measured.longest, context)
        with check.loaded(gguf, context=room, adapter=lora if exported.base else None) as model:
            misfit = None
            if lora and not exported.base:
                try:
                    model.require_fits(lora)
                except ExportFailed as error:
                    if spec.format is not None:
                        raise
                    misfit, lora = error.message, None
                    emit.log(f"Keeping only the merged model: {misfit}")
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
        sha256 = digest.result()
        return _Checked(
            contents=contents,
            sha256=sha256,
            weights_sha256=weights.result(),
            tensor_types=head.read(registered).tensor_types,
            adapter_sha256=sha256
            if registered is lora
            else (_settled_digest(lora) if lora else None),
            system=template.system,
            reference=seen,
            perplexity=change,
            misfit=misfit,
            seconds=round(time.monotonic() - started, 3),
            peak_ram_bytes=peak_ram_bytes(),
        )


def _write_base(
    spec: ExportSpec, exported: writing.Exported, checked: _Checked, emit: Emitter
) -> Path:
    """The base through the same export: what eval compares with to leave quantization out.

    Raises:
        ExportFailed: it is not the model's file but for the adapter.
    """
    from loco_trainer.gguf import head

    target = writing.write_base(spec, exported, emit)
    found = head.read(target)
    if found != checked.contents:
        raise ExportFailed(
            f"The exported base does not match the exported model: {found}, {checked.contents}.",
            hint="The attempt's log has the converter's own words.",
        )
    _settled_digest(target)
    return target


def _describe(
    spec: ExportSpec, exported: writing.Exported, checked: _Checked, out_dir: Path
) -> None:
    """Writes what goes with the checked files."""
    text = modelfile(spec, exported.gguf.name, checked.system, base=exported.base)
    write_text(out_dir / "Modelfile", text)
    write_text(out_dir / REFERENCE, checked.reference.model_dump_json(indent=1) + "\n")


def _move(gguf: Path, out_dir: Path) -> str:
    name = f"gguf/{gguf.name}"
    target = out_dir / name
    target.parent.mkdir(exist_ok=True)
    gguf.rename(target)
    sync_folder(target.parent)
    return name


def _settled_digest(path: Path) -> str:
    """SHA-256 of a file that is then safely on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_of(path)


def modelfile(
    spec: ExportSpec, gguf: str, system: str | None, *, base: ServedBase | None = None
) -> str:
    """The Modelfile that makes the same model by hand: `ollama create NAME -f Modelfile`.

    It has no TEMPLATE: Ollama takes the chat template embedded in the GGUF. An adapter's names the
    base that register has created in Ollama.
    """
    model = spec.base_model
    whole = [
        f"# {spec.model_name}: {model.name} with the adapter merged in, {spec.quantization}.",
        f"FROM ./gguf/{gguf}",
    ]
    alone = [
        f"# {spec.model_name}: the adapter on {model.name}, {spec.quantization}.",
        f"FROM {base.model if base else ''}",
        f"ADAPTER ./{ADAPTER_GGUF}",
    ]
    lines = [
        *(alone if base else whole),
        f"PARAMETER temperature {spec.temperature}",
        f"PARAMETER num_ctx {spec.num_ctx}",
        f"PARAMETER num_predict {spec.num_predict}",
        *(f"PARAMETER stop {quoted(stop, short=True)}" for stop in model.stop),
    ]
    if system is not None:
        lines.append(f"SYSTEM {quoted(system)}")
    return "\n".join(lines) + "\n"


def _compare(contents: "Contents", tensors: int, template: str) -> None:
    """Compares the GGUF read back with what was planned and with the training tokenizer."""
    faults = []
    if contents.tensors != tensors:
        faults.append(f"it has {contents.tensors} tensors instead of {tensors}")
    if contents.chat_template != template:
        faults.append("its chat template is not the one used in training")
    if contents.vocabulary != contents.embedding_rows:
        faults.append(
            f"its vocabulary has {contents.vocabulary} tokens for {contents.embedding_rows} "
            "embedding rows"
        )
    if faults:
        raise ExportFailed(
            f"The exported GGUF is damaged: {'; '.join(faults)}.",
            hint="The base model's tokenizer or architecture may be unknown to the converter.",
        )


def _require_answer(text: str | None) -> None:
    """An export that says nothing does not commit."""
    if not (text or "").strip():
        raise ExportFailed(
            "The exported GGUF gives an empty answer to its first question.",
            hint="Check the training loss. The learning rate or the number of epochs may be too "
            "high.",
        )


if __name__ == "__main__":
    sys.exit(main(Stage.EXPORT, run))
