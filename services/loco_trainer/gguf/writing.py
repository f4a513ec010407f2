"""What export writes: the merged model, or the adapter and the base it is served on.

The check of what came out is `loco_trainer.export`'s.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from loco.contracts.errors import ExportFailed
from loco.contracts.serving import ADAPTER_RATE, MOST_ADAPTER_SECONDS, ServedBase
from loco.contracts.specs import ExportFormat, ExportSpec, Inputs, Quantization
from loco.stage.program import Emitter
from loco_trainer.bases import find
from loco_trainer.gguf import parent, served_base
from loco_trainer.machine.disk import require_free
from loco_trainer.machine.imports import hide
from loco_trainer.machine.ram import peak_ram_bytes

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


@dataclass(frozen=True)
class Exported:
    """What was written, not yet looked at."""

    #: The whole model that is loaded to look: the merged one, or the base the adapter is put on.
    gguf: Path
    written: parent.Written
    #: Tensors that were planned for `gguf`.
    tensors: int
    #: With the template of the training, not the one in the GGUF.
    tokenizer: Any
    embedded: str
    think: bool
    #: Of this process and the one that wrote, which were there together.
    peak_ram_bytes: int
    job: parent.Job
    #: What there is now, and why where it was chosen or could not be had as asked.
    format: ExportFormat
    reason: str | None = None
    #: The adapter's own GGUF.
    adapter: Path | None = None
    #: What it is served on; None: the merged model is served.
    base: ServedBase | None = None
    base_reused: bool = False


@dataclass(frozen=True)
class Work:
    """One export's writing."""

    spec: ExportSpec
    inputs: Inputs
    #: Folder of the trained adapter.
    adapter: Path
    #: Where the disk has to have room.
    out_dir: Path
    #: An empty folder on the same disk.
    temporary: Path
    emit: Emitter

    def write(self) -> Exported:
        """Writes what `spec.format` asks for.

        Raises:
            ExportFailed: base or adapter are not what they should be.
            DiskFull: there is no room.
        """
        base = find.resolve(self.spec.base_model, "merge", self.inputs.models_dir, self.emit)
        wanted, reason = self._format()
        if wanted == "adapter":
            found = self._alone(base)
            if isinstance(found, Exported):
                return found
            wanted, reason = "merged", found
            self.emit.log(f"Writing the merged model instead: {reason}.")
        require_free(self.out_dir, self._size(base), f"export to {self.spec.quantization}")
        self.emit.check_stop()
        return self._merged(base, wanted, reason)

    def _size(self, base: Path) -> int:
        """Upper bound of the bytes of whole models that are written."""
        share = _SHARE_OF_16_BITS[self.spec.quantization]
        return (int(find.weight_bytes(base) * share) + _METADATA_BYTES) * (1 + self.spec.base)

    def _format(self) -> tuple[ExportFormat, str | None]:
        """What is written, by what is known before: the adapter's size."""
        if self.spec.format is not None:
            return self.spec.format, None
        size = (self.adapter / "adapter_model.safetensors").stat().st_size
        seconds = size / ADAPTER_RATE
        if seconds < MOST_ADAPTER_SECONDS:
            return "both", f"an adapter of {size / 1e6:.0f} MB takes about {seconds:.1f} s more"
        return "merged", (
            f"an adapter of {size / 1e6:.0f} MB would take about {seconds:.0f} s more. Set "
            "export.format to both to write it"
        )

    def _merged(self, base: Path, wanted: ExportFormat, reason: str | None) -> Exported:
        spec = self.spec
        today = datetime.now(UTC).date()
        embedding = _Embedding.of(
            self.inputs, f"{spec.model_name}, job {self.inputs.job_id}, {today}"
        )
        # the converter writes the folder's name into the GGUF
        folder = _folder(self.temporary / spec.model_name, base, self.adapter, embedding)
        target = self.temporary / f"unsloth.{spec.quantization}.gguf"
        lora = self.temporary / "adapter.gguf" if wanted == "both" else None
        job = replace(self._job(folder, target), lora=str(lora or ""))
        exported = _run(job, embedding, wanted, self.emit)
        self.emit.log(
            f"Merged {exported.written.merged} adapted layers into {spec.base_model.merge}."
        )
        if why := exported.written.not_carried:
            self.emit.log(f"There is no GGUF of only the adapter: {why}.")
            return replace(exported, format="merged", reason=why)
        return replace(exported, reason=reason, adapter=lora)

    def _alone(self, base: Path) -> Exported | str:
        """The adapter, and its base unless an earlier export has written that; or why it cannot be."""
        spec, name = self.spec, self.spec.base_model.name
        embedding = _Embedding.of(self.inputs, f"{name}, as adapters of it are served")
        folder = _folder(self.temporary / name, base, self.adapter, embedding)
        place = served_base.place(spec, folder, _outtype(folder, spec), self.inputs.models_dir)
        lora = self.temporary / "adapter.gguf"
        with served_base.writing(place) as part:
            known = served_base.kept(place)
            reused = known is not None
            if known is None:
                needed = self._size(base)
                require_free(self.inputs.models_dir, needed, f"the base of {name}'s adapters")
                self.emit.log(f"Writing the base that serves adapters of {name} (once).")
            self.emit.check_stop()
            job = replace(self._job(folder, part), lora=str(lora), merge=False, whole=not reused)
            exported = _run(job, embedding, "adapter", self.emit)
            if exported.written.not_carried:
                return exported.written.not_carried
            if known is None:
                known = served_base.keep(part, place, exported.written.tensors)
        self.emit.log(f"{'Reused' if reused else 'Wrote'} {place.name}, {known.size / 1e6:.0f} MB.")
        return replace(
            exported,
            gguf=place,
            tensors=known.tensors,
            adapter=lora,
            base=served_base.served(spec, place, known, self.inputs.models_dir),
            base_reused=reused,
        )

    def _job(self, folder: Path, target: Path) -> parent.Job:
        return parent.Job(
            folder=str(folder),
            adapter=str(self.adapter),
            target=str(target),
            name=folder.name,
            outtype=_outtype(folder, self.spec),
            quantization=self.spec.quantization,
        )


def _folder(folder: Path, base: Path, adapter: Path, embedding: "_Embedding") -> Path:
    from loco_trainer.gguf import folder as folders

    return folders.make(folder, base, adapter, embedding)


@dataclass
class _Embedding:
    """Makes the chat templates of the GGUF of those of the training."""

    #: Whether the training's prompts ask for thoughts.
    think: bool
    title: str
    #: Template in the GGUF to that of the training.
    trained: dict[str, str]

    @classmethod
    def of(cls, inputs: Inputs, title: str) -> "_Embedding":
        from loco_trainer.gguf import reference

        return cls(reference.trained_branch(inputs), title, {})

    def __call__(self, text: str) -> str:
        from loco_trainer.data import served

        changed = served.embedded(text, think=self.think, title=self.title)
        self.trained[changed] = text
        return changed


def _run(job: parent.Job, embedding: _Embedding, wanted: ExportFormat, emit: Emitter) -> Exported:
    emit.progress(message="reading tokenizer and metadata", percent=0.0, last=True)
    with ThreadPoolExecutor(1) as background:
        # its imports, and those of what comes after, take seconds that the child needs anyway
        loading = background.submit(_load_tokenizer, Path(job.folder))
        written = parent.write(job, emit)
        tokenizer = loading.result()
    together = written.peak_ram_bytes + peak_ram_bytes()
    embedded = tokenizer.chat_template
    tokenizer.chat_template = embedding.trained.get(embedded)
    return Exported(
        gguf=Path(job.target),
        written=written,
        tensors=written.tensors,
        tokenizer=tokenizer,
        embedded=embedded,
        think=embedding.think,
        peak_ram_bytes=together,
        job=job,
        format=wanted,
    )


def write_base(spec: ExportSpec, exported: Exported, emit: Emitter) -> Path:
    """The base through the same export as the merged model, which differs by the adapter alone."""
    name = f"{spec.model_name}-base"
    folder = Path(exported.job.folder)
    folder = folder.rename(folder.with_name(name))
    target = folder.parent / f"base.{spec.quantization}.gguf"
    emit.log(f"Writing {spec.base_model.merge} without the adapter.")
    job = replace(exported.job, folder=str(folder), target=str(target), name=name)
    parent.write(replace(job, adapter="", lora=""), emit)
    return target


def adapter_folder(inputs: Inputs) -> Path:
    """The folder the train stage's committed files lie in."""
    path = inputs.files.get("train/checkpoints/adapter_model.safetensors")
    if path is None or not path.is_file():
        raise ExportFailed(
            f"There is no trained adapter to export ({path or 'none given'}).",
            hint="Run stage train first, or name a job with one: `from_job`.",
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
