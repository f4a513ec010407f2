"""RAM and disk that a job's stages need beside the memory of the training device."""

from pathlib import Path

from loco.plan_facts import is_here
from loco.plan_memory import Memory, trained_parameters, weight_bytes
from loco.plans import Plan, Shape
from loco.previews import Needs
from loco.specs import JobSpec, Quantization
from loco.stages import Stage

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
_EXPORT_GB = 1.4
#: Export holds its largest tensor in 16 bits, in float32, and quantized.
_EXPORT_BYTES = 2 + 4 + 1
#: Bytes of a trained parameter in a checkpoint (float32 weight, AdamW's two moments), and how many
#: checkpoints lie on disk while the newest is written.
_CHECKPOINT_BYTES = 12
_CHECKPOINTS = 3
#: Bytes of a prepared row, on the safe side.
_ROW_BYTES = 4000


def needs_of(
    spec: JobSpec, plan: Plan, memory: Memory, shape: Shape, *, models_dir: Path
) -> tuple[Needs, ...]:
    """What prepare, train and export need; register and eval need next to nothing here."""
    four_bit = plan.precision == "4bit"
    base = spec.train.base_model
    trains_on = base.train if four_bit else base.merge
    fetched = 0.0
    if base.kind == "hub" and not is_here(base, trains_on, models_dir):
        fetched = weight_bytes(shape, plan.precision if four_bit else "bf16")
    merged = 0.0
    apart = base.kind == "hub" and trains_on != base.merge
    if apart and not is_here(base, base.merge, models_dir):
        merged = weight_bytes(shape, "bf16")
    largest = max(shape.vocab_size * shape.hidden_size, *shape.linear_parameters.values())
    checkpoints = trained_parameters(spec.train, shape) * _CHECKPOINT_BYTES * _CHECKPOINTS
    found = {
        Stage.PREPARE: (_PREPARE_GB, spec.prepare.examples * _ROW_BYTES, 0.0),
        Stage.TRAIN: (
            memory.peak_gb if plan.precision == "fp32" else _TRAIN_ON_GPU_GB,
            checkpoints,
            fetched,
        ),
        Stage.EXPORT: (
            _EXPORT_GB + largest * _EXPORT_BYTES / 1e9,
            gguf_bytes(shape, spec.export.quantization),
            merged,
        ),
    }
    return tuple(
        Needs(
            stage=stage,
            ram_gb=round(ram, 1),
            disk_gb=round(disk / 1e9, 2),
            download_gb=round(download / 1e9, 2),
        )
        for stage, (ram, disk, download) in found.items()
        if stage in spec.stages
    )


def gguf_bytes(shape: Shape, quantization: Quantization) -> float:
    """Expected size of the exported file."""
    bits = _GGUF_BITS[quantization]
    if shape.hidden_size % _K_BLOCK and quantization != "F16":
        bits = max(bits, _NO_K_BITS)
    return shape.parameters * bits / 8
