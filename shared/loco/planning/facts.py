"""What is known before a job runs: the model's shape, how long its rows will be, the device."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loco.contracts.errors import InvalidRequest, UnsafePath
from loco.contracts.files import PUBLISH_LOCK
from loco.contracts.jobs import WorkerInfo
from loco.contracts.paths import inside
from loco.contracts.plans import Device, Engine, Lengths, Shape
from loco.contracts.previews import AskedDevice
from loco.contracts.sources import DatasetSource, JsonlSource, SelfSource
from loco.contracts.specs import BaseModelSpec, JobSpec, TrainSpec
from loco.contracts.stages import Queue, Stage
from loco.planning.batches import cut
from loco.planning.held_back import left_of
from loco.planning.history import History
from loco.planning.rates import capability_of
from loco.planning.row_lengths import GENERATED, generator_of, lengths_of_file
from loco.planning.ways import has_ampere
from loco.recipes.base_files import base_folders, missing_weights, with_stored_size
from loco.recipes.data_files import dataset_path
from loco.settings import Settings

#: Part of an asked-for card that is free: the driver keeps the rest.
_FREE = 0.95
#: Part of rows that is answer where nothing is known (GSM8K has 0.55).
_ANSWERS = 0.6
_DATA = "training_data.jsonl"


def shape_of(base: BaseModelSpec, models_dir: Path) -> Shape:
    """The shape of a base model, which need not be on this machine.

    Raises:
        InvalidRequest: neither the catalog nor a folder here says it.
    """
    config = base.config or _config_here(base, models_dir)
    if config is None:
        raise InvalidRequest(
            f"The shape of {base.name} is not known before its download.",
            param="base_model",
            hint="Copy these fields of its config.json to `config` in adapters/base_models.yaml: "
            + ", ".join(name for name in Shape.model_fields if name != "quantized_bytes")
            + ".",
        )
    try:
        return with_stored_size(Shape.of(config), base, models_dir)
    except (KeyError, ValidationError, TypeError) as error:
        raise InvalidRequest(
            f"The config of {base.name} does not describe a decoder model: {error}.",
            param="base_model",
            hint="Correct `config` in adapters/base_models.yaml or the model's config.json.",
        ) from error


def is_here(base: BaseModelSpec, source: str, models_dir: Path) -> bool:
    """Whether weights are on this machine already, and whole."""
    return any(not missing_weights(folder) for folder in base_folders(base, source, models_dir))


def device_of(asked: AskedDevice | None, workers: list[WorkerInfo]) -> tuple[Device, str]:
    """What the job would train on, and how that is known.

    Raises:
        InvalidRequest: no worker says, and the request does not either.
    """
    if asked is not None:
        return _as_device(asked), "the request"
    heard = [w for w in workers if w.queue == Queue.GPU and w.hardware is not None]
    if not heard:
        raise InvalidRequest(
            "No running worker reports a device to train on.",
            param="device",
            hint="Start one with `loco up`, or name a device to plan for: "
            '`loco plan NAME --gpu-memory 8`, or "device": {"memory_gb": 8}.',
        )
    newest = max(heard, key=lambda w: w.seen_at)
    assert newest.hardware is not None
    return newest.hardware, f"worker {newest.id}"


def engine_for(spec: TrainSpec, device: Device) -> Engine:
    """The engine that `auto` takes there, as far as that can be known from elsewhere.

    Raises:
        InvalidRequest: unsloth was asked for on a CPU.
    """
    if spec.engine == "unsloth" and not device.is_gpu:
        raise InvalidRequest(
            "Engine unsloth needs an NVIDIA GPU, but training would run on a CPU.",
            param="train.engine",
            hint="Set train.engine to auto or peft.",
        )
    if spec.engine != "auto":
        return spec.engine
    return "unsloth" if device.is_gpu and not has_ampere(device) else "peft"


def lengths_of(spec: JobSpec, history: History, settings: Settings) -> tuple[Lengths, str]:
    """How long the training rows will be, and how that is known.

    Pairs whose lengths no earlier job tells are taken to be as long as rows: both are answers to the
    same questions.
    """
    lengths, known = _lengths_of_rows(spec, history, settings)
    pairs, source = None, spec.prepare.source
    if spec.train.preference and isinstance(source, SelfSource) and source.pairs:
        alike = lengths.pairs or lengths
        pairs = _scaled(alike, 2 * source.pairs).model_copy(update={"pairs": None})
    if spec.train.preference and isinstance(source, DatasetSource):
        alike = lengths.pairs or lengths
        pairs = _scaled(alike, 2 * spec.prepare.examples).model_copy(update={"pairs": None})
    return lengths.model_copy(update={"pairs": pairs}), known


def _lengths_of_rows(spec: JobSpec, history: History, settings: Settings) -> tuple[Lengths, str]:
    longest, source = spec.train.max_length, spec.prepare.source
    if known := history.lengths(spec):
        lengths, conversations, job_id = known
        # a chat template may ask for a row an answer
        rows = max(1, round(spec.prepare.examples * lengths.rows / conversations))
        return _scaled(cut(lengths, longest), rows), f"the rows of job {job_id}"
    if (data := _prepared_file(spec, history, settings)) and (guess := lengths_of_file(data[0])):
        return _scaled(cut(guess, longest), spec.prepare.examples), f"the characters of {data[1]}"
    if isinstance(source, JsonlSource):
        path = dataset_path(
            source.path, settings.adapters_dir / spec.adapter, settings.dataset_dirs
        )
        if guess := lengths_of_file(path):
            # a file may have fewer than are asked for
            rows = min(left_of(spec.prepare, guess.rows), spec.prepare.examples)
            return _scaled(cut(guess, longest), rows), f"the characters of {source.path}"
    if (made := GENERATED.get(generator_of(source))) is not None:
        return _scaled(cut(made, longest), spec.prepare.examples), "what this generator produces"
    left = settings.adapters_dir / spec.adapter / _DATA
    of_no_job = left.is_file() and not left.with_name(PUBLISH_LOCK).exists()
    if of_no_job and (guess := lengths_of_file(left)):
        words = f"the characters of {spec.adapter}/{_DATA}"
        return _scaled(cut(guess, longest), spec.prepare.examples), words
    rows = spec.prepare.examples
    answers = max(1, round(rows * longest * _ANSWERS))
    full = Lengths(
        rows=rows,
        tokens=rows * longest,
        answer_tokens=answers,
        p50=longest,
        p95=longest,
        longest=longest,
    )
    return full, f"the worst case: every row filled to {longest} tokens"


def _prepared_file(spec: JobSpec, history: History, settings: Settings) -> tuple[Path, str] | None:
    """Rows of the same source that an earlier job prepared, where they are still there."""
    job = history.prepared(spec)
    task = job.stage(Stage.PREPARE) if job else None
    for artifact in task.artifacts if task else ():
        if artifact.name != _DATA:
            continue
        with suppress(UnsafePath):
            path = inside(settings.adapters_dir, artifact.path)
            if job and path.is_file():
                return path, f"the rows of job {job.id}"
    return None


def _as_device(asked: AskedDevice) -> Device:
    """The device a request describes, almost all of it free."""
    is_cpu = asked.name.lower() == "cpu"
    return Device(
        name="cpu" if is_cpu else asked.name,
        memory_gb=asked.memory_gb,
        free_gb=asked.memory_gb * _FREE,
        compute_capability=None
        if is_cpu
        else asked.compute_capability or capability_of(asked.name),
    )


def _scaled(lengths: Lengths, rows: int) -> Lengths:
    """The lengths of so many rows of the same kind."""
    part = rows / lengths.rows
    return lengths.model_copy(
        update={
            "rows": rows,
            "tokens": max(1, round(lengths.tokens * part)),
            "answer_tokens": max(1, round(lengths.answer_tokens * part)),
        }
    )


def _config_here(base: BaseModelSpec, models_dir: Path) -> dict[str, Any] | None:
    for source in (base.merge, base.train):
        for folder in base_folders(base, source, models_dir):
            if (folder / "config.json").is_file():
                found: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
                return found
    return None
