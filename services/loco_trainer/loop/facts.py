"""The facts a plan follows from, as this machine and these rows have them; `loco.planning.planner` decides."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from loco.contracts.plans import Device, Engine, Lengths, Plan, Shape
from loco.contracts.specs import TrainSpec
from loco.planning.lessons import Lessons
from loco.planning.planner import make_plan, next_rung
from loco.recipes.base_files import with_stored_size
from loco.stage import hardware
from loco_trainer.bases import find
from loco_trainer.data.pairs import Pairs
from loco_trainer.data.rows import IGNORED, Row, Rows
from loco_trainer.machine.imports import is_installed

#: Nothing was tried before.
_NONE = Lessons()


def shape_of(spec: TrainSpec, config: Path, models_dir: Path) -> Shape:
    """The base model's shape, with the size of its 4-bit weights where they are here.

    Args:
        spec: the recipe.
        config: Hugging Face folder with the base's config.json.
        models_dir: cache of base models.

    Raises:
        InvalidRequest: the base is a mixture of experts.
    """
    return with_stored_size(Shape.of(find.read_config(config)), spec.base_model, models_dir)


def plan_for(
    spec: TrainSpec,
    shape: Shape,
    rows: Rows,
    engine: Engine,
    *,
    pairs: Pairs | None = None,
    lessons: Lessons = _NONE,
    worked: Plan | None = None,
) -> Plan:
    """The plan of a run on this machine.

    Args:
        spec: the recipe.
        shape: of the base model.
        rows: the tokenized data.
        engine: which engine trains.
        pairs: of `spec.preference`.
        lessons: what earlier runs teach.
        worked: the plan of the checkpoint that is gone on from; it is kept on a like device with room.

    Raises:
        OutOfMemory: nothing fits; the hint says what would.
        InvalidRequest: the pinned micro-batch does not divide the rows of a step.
    """
    here = device()
    if (
        worked is not None
        and (worked.engine, worked.device) == (engine, here.name)
        and worked.memory_gb <= here.free_gb
    ):
        return worked.model_copy(update={"why": "it worked until the checkpoint"})
    lengths = lengths_of(rows, pairs)
    return make_plan(spec, shape, lengths, here, engine=engine, lessons=lessons)


def ladder(
    spec: TrainSpec,
    shape: Shape,
    rows: Rows,
    *,
    pairs: Pairs | None = None,
    lessons: Lessons = _NONE,
) -> Callable[[Plan, bool], Plan | None]:
    """A function from a plan that ran out of memory to the next one to try, None after the last.

    It is also told whether memory ran out on pairs.
    """
    lengths, where = lengths_of(rows, pairs), device()
    if not is_installed("bitsandbytes"):
        spec = spec.model_copy(update={"load_in_4bit": False})
    return lambda plan, on_pairs: next_rung(
        plan, spec, shape, lengths, where, lessons=lessons, on_pairs=on_pairs
    )


def lengths_of(rows: Rows, pairs: Pairs | None = None) -> Lengths:
    """How long the tokenized rows are, and those of pairs."""
    lengths = _lengths_of(rows.rows)
    if pairs is None:
        return lengths
    both = [row for pair in pairs.pairs for row in pair.rows]
    return lengths.model_copy(update={"pairs": _lengths_of(both)})


def _lengths_of(rows: Sequence[Row]) -> Lengths:
    sizes = sorted(len(row.input_ids) for row in rows)
    answers = sum(label != IGNORED for row in rows for label in row.labels)
    return Lengths(
        rows=len(sizes),
        tokens=sum(sizes),
        answer_tokens=answers,
        p50=round(statistics.median(sizes)),
        p95=sizes[-(-95 * len(sizes) // 100) - 1],
        longest=sizes[-1],
    )


def device() -> Device:
    """What this process trains on: the first GPU that torch sees, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return hardware.cpu()
    free, total = torch.cuda.mem_get_info(0)
    # a share of the card this process has been limited to
    free = min(free, int(torch.cuda.get_per_process_memory_fraction(0) * total))
    # what this process has reserved already, and does not use, is free as well
    free += torch.cuda.memory_reserved(0) - torch.cuda.memory_allocated(0)
    major, minor = torch.cuda.get_device_capability(0)
    return Device(
        name=torch.cuda.get_device_name(0),
        memory_gb=total / 1e9,
        free_gb=free / 1e9,
        compute_capability=major + minor / 10,
    )
