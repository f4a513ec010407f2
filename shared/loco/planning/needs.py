"""RAM and disk that a job's stages need beside the memory of the training device."""

from pathlib import Path

from loco.contracts.plans import Memory, Plan, Shape
from loco.contracts.previews import Needs
from loco.contracts.serving import ADAPTER_RATE, MOST_ADAPTER_SECONDS, SERVED_FOLDER
from loco.contracts.specs import BaseModelSpec, JobSpec, Quantization
from loco.contracts.stages import Stage
from loco.planning.facts import is_here
from loco.planning.memory import checkpoint_bytes, trained_parameters, weight_bytes

#: Bits a weight of a GGUF file, averaged over its tensors: Q4_K_M of Qwen3-4B is 2.50 GB.
_GGUF_BITS: dict[Quantization, float] = {
    "Q4_K_M": 4.97,
    "Q5_K_M": 5.8,
    "Q6_K": 6.6,
    "Q8_0": 8.5,
    "F16": 16.0,
}
#: K-quants take rows in blocks of so many weights; rows of other lengths fall back to wider types
#: (Q4_K_M of SmolLM2-135M is 105 MB).
_K_BLOCK = 256
_NO_K_BITS = 6.3
#: A Python process with the libraries of its stage, 10^9 bytes.
_PREPARE_GB = 0.6
_TRAIN_ON_GPU_GB = 4.0
#: Export is two processes, whose libraries take 2.2 of it, and reads 0.3 ahead; bytes of a number of
#: its largest tensor come on top, more where it is adapted (Qwen3-4B: 5.6 measured, docs/adr/0007).
_EXPORT_GB = 2.5
_EXPORT_BYTES, _EXPORT_ADAPTED_BYTES = 8, 18
#: Bytes of a prepared row, on the safe side.
_ROW_BYTES = 4000


def needs_of(
    spec: JobSpec, plan: Plan, memory: Memory, shape: Shape, *, models_dir: Path
) -> tuple[Needs, ...]:
    """What prepare, train and export need; register and eval need next to nothing here."""
    fetched = _downloads(spec, plan, shape, models_dir)
    found = {
        Stage.PREPARE: (_PREPARE_GB, spec.prepare.examples * _ROW_BYTES),
        Stage.TRAIN: (
            memory.peak_gb if plan.precision == "fp32" else _TRAIN_ON_GPU_GB,
            checkpoint_bytes(spec.train, shape),
        ),
        Stage.EXPORT: (
            _EXPORT_GB + _largest_tensor_bytes(shape) / 1e9,
            _exported_bytes(spec, shape, models_dir),
        ),
    }
    return tuple(
        Needs(
            stage=stage,
            ram_gb=round(ram, 1),
            disk_gb=round(disk / 1e9, 2),
            download_gb=round(fetched.get(stage, 0.0) / 1e9, 2),
        )
        for stage, (ram, disk) in found.items()
        if stage in spec.stages
    )


def _downloads(spec: JobSpec, plan: Plan, shape: Shape, models_dir: Path) -> dict[Stage, float]:
    """Bytes that stages fetch; weights are fetched once, by the first stage that needs them."""
    base = spec.train.base_model
    missing = fetched(base, shape, models_dir, four_bit=plan.precision == "4bit")
    loaded = {
        Stage.TRAIN: base.train if plan.precision == "4bit" else base.merge,
        Stage.EXPORT: base.merge,
    }
    stages = [stage for stage in loaded if stage in spec.stages]
    return {stage: missing.pop(loaded[stage]) for stage in stages if loaded[stage] in missing}


def fetched(
    base: BaseModelSpec, shape: Shape, models_dir: Path, *, four_bit: bool
) -> dict[str, float]:
    """Weights that training and export load and that are not here: hub id to bytes.

    Args:
        base: the catalog's entry.
        shape: its shape.
        models_dir: cache of base models.
        four_bit: whether training holds the base in 4 bits.
    """
    if base.kind != "hub":
        return {}
    loaded = {base.train if four_bit else base.merge, base.merge}
    return {
        # training in 4 bits may quantize the 16-bit weights that export merges into
        source: weight_bytes(shape, "bf16" if source == base.merge else "4bit")
        for source in loaded
        if not is_here(base, source, models_dir)
    }


def _largest_tensor_bytes(shape: Shape) -> float:
    adapted = max(shape.linear_parameters.values()) * _EXPORT_ADAPTED_BYTES
    return max(shape.vocab_size * shape.hidden_size * _EXPORT_BYTES, adapted)


def served_base_is_here(spec: JobSpec, models_dir: Path) -> bool:
    """Whether an earlier export has written a base that this job's adapter may be served on."""
    pattern = f"{spec.export.base_model.name}.*.{spec.export.quantization}.gguf"
    return any((models_dir / SERVED_FOLDER).glob(pattern))


def adapter_bytes(spec: JobSpec, shape: Shape) -> float:
    """Expected size of the adapter's own GGUF, of 16 bits."""
    return 2.0 * trained_parameters(spec.train, shape)


def _exported_bytes(spec: JobSpec, shape: Shape, models_dir: Path) -> float:
    whole = gguf_bytes(shape, spec.export.quantization)
    if spec.export.format == "adapter":
        written = 0.0 if served_base_is_here(spec, models_dir) else whole
        return written + adapter_bytes(spec, shape)
    models = whole * (1 + spec.export.base)
    return models + adapter_bytes(spec, shape) if writes_adapter(spec, shape) else models


def writes_adapter(spec: JobSpec, shape: Shape) -> bool:
    """Whether export writes the adapter's own GGUF: where it is asked for, or costs little."""
    if spec.export.format is not None:
        return spec.export.format != "merged"
    return 2 * adapter_bytes(spec, shape) / ADAPTER_RATE < MOST_ADAPTER_SECONDS


def gguf_bytes(shape: Shape, quantization: Quantization) -> float:
    """Expected size of the exported file."""
    bits = _GGUF_BITS[quantization]
    if shape.hidden_size % _K_BLOCK and quantization != "F16":
        bits = max(bits, _NO_K_BITS)
    return shape.parameters * bits / 8
