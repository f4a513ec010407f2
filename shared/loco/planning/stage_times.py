"""How long a job's stages are expected to take: from earlier runs where there are any."""

from pathlib import Path
from typing import Literal

from loco.contracts.plans import Device, Plan, Shape
from loco.contracts.previews import StageTime
from loco.contracts.serving import ADAPTER_RATE
from loco.contracts.sources import SelfSource
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.planning.asking import Asking
from loco.planning.history import History
from loco.planning.memory import weight_bytes
from loco.planning.needs import adapter_bytes, served_base_is_here, writes_adapter

#: Bytes of 16-bit weights a second that export merges, quantizes and writes: on a GPU, and with
#: each core of a CPU (Qwen3-4B: 8 GB in 30 s on 16 cores).
_EXPORT_GPU_RATE = 0.6e9
_EXPORT_CORE_RATE = 17e6
#: Seconds of export whatever the model: imports, loading the GGUF, asking it a question.
_EXPORT_SECONDS = 8.0
_DEFAULT_CORES = 4


def stage_times(
    spec: JobSpec,
    plan: Plan,
    shape: Shape,
    device: Device,
    *,
    history: History,
    models_dir: Path,
    runs: int,
    asking: Asking | None = None,
) -> tuple[StageTime, ...]:
    """Expected seconds of each stage of the job.

    Args:
        spec: the job.
        plan: its training, corrected by earlier runs.
        shape: of the base model.
        device: what train and export run on.
        history: earlier runs.
        models_dir: the folder of base models.
        runs: earlier runs that corrected the plan.
        asking: what source self would ask; none: another source, or nothing is known.
    """
    found = []
    for stage in spec.stages:
        seconds, measured = history.seconds(stage, spec, device=device.name)
        basis: Literal["runs", "model", "unknown"] = "runs"
        if stage is Stage.TRAIN:
            seconds, measured = plan.train_seconds, runs
            basis = "runs" if runs else "model"
        elif stage is Stage.PREPARE and isinstance(spec.prepare.source, SelfSource):
            # not as long as last time: that run may have known many of its answers
            seconds, measured = (asking.seconds, asking.before.runs) if asking else (0.0, 0)
            basis = "runs" if asking else "unknown"
        elif not measured:
            seconds = (
                _export_seconds(spec, shape, device, models_dir) if stage is Stage.EXPORT else 0.0
            )
            basis = "model" if seconds else "unknown"
        found.append(
            StageTime(stage=stage, seconds=round(seconds, 1) or None, basis=basis, runs=measured)
        )
    return tuple(found)


def _export_seconds(spec: JobSpec, shape: Shape, device: Device, models_dir: Path) -> float:
    adapter = 2 * adapter_bytes(spec, shape) / ADAPTER_RATE  # trained in 32 bits
    if spec.export.format == "adapter" and served_base_is_here(spec, models_dir):
        return round(_EXPORT_SECONDS + adapter, 1)
    rate = _EXPORT_GPU_RATE
    if not device.is_gpu:
        rate = _EXPORT_CORE_RATE * (device.cores or _DEFAULT_CORES)
    seconds = _EXPORT_SECONDS + weight_bytes(shape, "bf16") / rate
    return round(seconds + (adapter if writes_adapter(spec, shape) else 0.0), 1)
