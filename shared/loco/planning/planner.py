"""Chooses how a recipe is trained on a device: the fastest way whose memory fits.

Pure arithmetic over `loco.contracts.plans`: no torch, no GPU. The API shows its answer before anything is
spent, and the trainer carries out the same answer for the facts it finds.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from loco.contracts.errors import OutOfMemory
from loco.contracts.plans import Device, Engine, Lengths, Memory, Plan, Shape
from loco.contracts.specs import TrainSpec
from loco.planning.batches import cut, largest_pass, of_pairs
from loco.planning.deadline import check_time
from loco.planning.lessons import Lessons
from loco.planning.memory import peak_memory
from loco.planning.rates import rates
from loco.planning.time import preference_seconds, start_seconds, step_seconds, train_seconds
from loco.planning.ways import Way, described, own_split, own_splits, smaller, ways

__all__ = [
    "Estimate",
    "estimate",
    "estimates",
    "make_plan",
    "margin_gb",
    "next_rung",
    "peak_memory",
    "plan_of",
]

#: Room left beside the expected peak: the model's own error, and what the allocator cannot join.
_MARGIN_PART = 0.08
#: The CUDA context, cuBLAS and loaded kernels, which torch's allocator does not count, 10^9 bytes.
_CONTEXT_GB = 0.4
#: Fields of a recipe that pin a choice.
_PINS = ("load_in_4bit", "micro_batch", "gradient_checkpointing", "padding_free", "cuda_graphs")
#: Ways within so much of the fastest count as equally fast.
_TIE = 0.02
#: 16-bit weights, the ones the adapter will be merged into, are worth so much more time a step.
_PRECISION_WORTH = 0.10
#: Most tokens of a forward pass that is worth recording: larger ones are not bound by launches.
_GRAPHED_TOKENS = 16_384
#: Nothing was tried before.
_NONE = Lessons()


@dataclass(frozen=True)
class Estimate:
    """What a way is expected to take."""

    way: Way
    memory: Memory
    step_seconds: float
    start_seconds: float
    device: Device
    #: From the model's memory to that of earlier runs; in `memory` already.
    memory_factor: float = 1.0
    #: Whether it, or a smaller way, ran out of memory on this device before.
    ran_out: bool = False
    #: Peak on the rows by the model alone, 10^9 bytes.
    rows_gb: float = 0.0
    #: The same on the pairs, pairs a pass, and seconds of a step on pairs; None and 0: the rows are all.
    pairs_gb: float | None = None
    pairs: int | None = None
    pair_step_seconds: float = 0.0

    def fits(self, device: Device) -> bool:
        """Whether it fits with the margin, and has not run out of memory before."""
        return (
            not self.ran_out
            and self.memory.peak_gb + margin_gb(self.memory.peak_gb, device) <= device.free_gb
        )

    def fits_barely(self, device: Device) -> bool:
        """Whether it fits without the margin."""
        return self.memory.peak_gb <= device.free_gb


def margin_gb(peak_gb: float, device: Device) -> float:
    """Room that a plan leaves beside its expected peak, 10^9 bytes."""
    return _MARGIN_PART * peak_gb + (_CONTEXT_GB if device.is_gpu else 0.0)


def make_plan(
    spec: TrainSpec,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    *,
    engine: Engine,
    lessons: Lessons = _NONE,
) -> Plan:
    """The plan of a run.

    On a GPU the fastest way that fits with the margin; 16 bits before 4 bits where they are nearly
    as fast, as they touch the result. On a CPU the recipe's own batches. Where nothing fits with the
    margin, the recipe's own batches, or the smallest way, if either fits without it.

    Raises:
        OutOfMemory: nothing fits; the hint says what would.
        InvalidRequest: the pinned micro-batch does not divide the rows of a step.
        Busy: it takes longer than who asks has said (`deadline`).
    """
    found = estimates(spec, shape, lengths, device, engine=engine, lessons=lessons)
    fitting = [e for e in found if e.fits(device)]
    own = [
        estimate(way, spec, shape, lengths, device, lessons=lessons)
        for way in own_splits(spec, shape, device, engine=engine)
    ]
    if not device.is_gpu and own[0].fits(device):
        why = "the recipe's own batches; more rows per pass gain little"
        return plan_of(own[0], spec, lengths, why)
    if fitting:
        return plan_of(_fastest(fitting), spec, lengths, _why(found, fitting, device))
    smallest = min(found, key=lambda e: (e.memory.peak_gb, e.way.simplicity))
    for last in sorted((*own, smallest), key=lambda e: e.ran_out):
        if last.fits_barely(device):
            return plan_of(
                last, spec, lengths, "no faster plan fits, and this one fits without a margin"
            )
    raise _too_large(
        spec, shape, lengths, device, engine=engine, smallest=smallest, lessons=lessons
    )


def next_rung(
    plan: Plan,
    spec: TrainSpec,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    *,
    lessons: Lessons = _NONE,
    on_pairs: bool = False,
) -> Plan | None:
    """The plan to go on with after memory ran out: half the rows (or pairs) a pass.

    With one row a pass already, activations are recomputed, then nothing is recorded; then a GPU
    holds the base in 4 bits where the recipe allows it, from the recipe's own batches down; after
    that there is None. The rows of an optimizer step stay the same. Pins say where the ladder begins, not
    where it ends.
    """
    pairs = plan.pairs
    if on_pairs and pairs and pairs > 1:
        pairs = (pairs + 1) // 2
        way: Way | None = Way.of(plan)
    elif on_pairs:  # the rows are behind: what their passes were is no help any more
        way = smaller(replace(Way.of(plan), micro_batch=1, cuda_graphs=False), spec)
    else:
        way = smaller(Way.of(plan), spec)
    if way is None:
        own = own_split(spec, shape, device, engine=plan.engine)
        if own.precision != "4bit" or plan.precision == "4bit":
            return None
        way = replace(own, gradient_checkpointing=True)
    found = estimate(way, spec, shape, lengths, device, lessons=lessons, pairs=pairs)
    below = plan_of(found, spec, lengths, "the plan before ran out of memory")
    return below.model_copy(update={"free_gb": plan.free_gb})  # before the base was loaded


def estimates(
    spec: TrainSpec,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    *,
    engine: Engine,
    lessons: Lessons = _NONE,
) -> list[Estimate]:
    """Every way that can be gone with what it takes; wide precisions first."""
    able = ways(spec, shape, device, engine=engine)
    worthwhile = [
        way
        for way in able
        if not way.cuda_graphs or largest_pass(way, spec, lengths) <= _GRAPHED_TOKENS
    ]
    # a pin on recording may leave none
    return [
        estimate(way, spec, shape, lengths, device, lessons=lessons) for way in worthwhile or able
    ]


def estimate(
    way: Way,
    spec: TrainSpec,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    *,
    lessons: Lessons = _NONE,
    pairs: int | None = None,
) -> Estimate:
    """What a way is expected to take: seconds by the model alone, memory as earlier runs teach.

    Args:
        way: how rows are trained on.
        spec: the recipe.
        shape: of the base.
        lengths: of its rows, and of its pairs.
        device: what it is trained on.
        lessons: of earlier runs.
        pairs: pairs a pass; None: the most that fit.
    """
    rows = _estimate(way, spec, shape, lengths, device, lessons=lessons)
    if spec.preference is None or lengths.pairs is None:
        return rows
    recipe = of_pairs(spec, spec.preference)
    splits = (pairs,) if pairs else _pair_splits(way, recipe, lengths.pairs, device)
    for size in splits:
        own = replace(way, micro_batch=2 * size, cuda_graphs=False)
        alone = _estimate(own, recipe, shape, lengths.pairs, device, lessons=lessons, on_pairs=True)
        larger = max(rows, alone, key=lambda e: e.memory.peak_gb)
        found = replace(
            rows,
            memory=larger.memory,
            memory_factor=larger.memory_factor,
            ran_out=rows.ran_out or alone.ran_out,
            pairs_gb=alone.rows_gb,
            pairs=size,
            pair_step_seconds=alone.step_seconds,
        )
        if found.fits(device):
            break
    return found


def _pair_splits(way: Way, recipe: TrainSpec, lengths: Lengths, device: Device) -> Iterator[int]:
    """Pairs a pass, the most first, at last one: passes on pairs are not recorded, so large ones pay.

    A CPU takes as many rows a pass as of rows.
    """
    most = min(recipe.step_rows, lengths.rows) // 2
    if not device.is_gpu:
        most = min(most, max(1, way.micro_batch // 2))
    size = max(1, min(most, int(_GRAPHED_TOKENS / (2 * lengths.mean))))
    while size > 1:
        yield size
        size = (size + 1) // 2
    yield 1


def _estimate(
    way: Way,
    spec: TrainSpec,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    *,
    lessons: Lessons,
    on_pairs: bool = False,
) -> Estimate:
    """Of one part alone, as if it were rows."""
    check_time()
    memory = peak_memory(way, spec, shape, lengths, device)
    # whatever was measured (a part of a run, another program's share): weights and adapter are held
    least = (memory.weights_gb + memory.adapter_gb) / memory.peak_gb
    factor = max(lessons.factor(way, device, on_pairs=on_pairs), least)
    learned = round(memory.peak_gb * (factor - 1), 4)
    return Estimate(
        way=way,
        memory=memory.model_copy(update={"learned_gb": learned}),
        device=device,
        memory_factor=factor,
        ran_out=lessons.ran_out(way, memory.peak_gb, device, on_pairs=on_pairs),
        rows_gb=memory.peak_gb,
        step_seconds=step_seconds(way, spec, shape, lengths, device),
        start_seconds=start_seconds(way, shape, device),
    )


def _fastest(found: list[Estimate]) -> Estimate:
    """The simplest of those that are as fast as the fastest, and of these the smallest.

    The wide precision comes first in `found`, and wins unless 4 bits are faster by more than
    `_PRECISION_WORTH`.
    """
    widest = [e for e in found if e.way.precision == found[0].way.precision]
    best = min(e.step_seconds for e in found)
    if min(e.step_seconds for e in widest) <= best * (1 + _PRECISION_WORTH):
        found = widest
    limit = min(e.step_seconds for e in found) * (1 + _TIE)
    return min(
        (e for e in found if e.step_seconds <= limit),
        key=lambda e: (e.way.simplicity, e.memory.peak_gb),
    )


def plan_of(found: Estimate, spec: TrainSpec, lengths: Lengths, why: str) -> Plan:
    """The plan of an estimated way.

    Args:
        found: the way and what it takes.
        spec: the recipe.
        lengths: of the rows.
        why: why it was chosen, in words.
    """
    way, step = found.way, found.step_seconds
    pair_step = found.pair_step_seconds
    whole = train_seconds(spec, lengths, start=found.start_seconds, step=step, pair_step=pair_step)
    return Plan(
        engine=way.engine,
        precision=way.precision,
        micro_batch=way.micro_batch,
        accumulation=spec.step_rows // way.micro_batch,
        gradient_checkpointing=way.gradient_checkpointing,
        padding_free=way.padding_free,
        cuda_graphs=way.cuda_graphs,
        pairs=found.pairs,
        max_length=lengths.longest,
        memory_gb=found.memory.peak_gb,
        memory_factor=found.memory_factor,
        rows_gb=found.rows_gb,
        pairs_gb=found.pairs_gb,
        device=found.device.name,
        free_gb=found.device.free_gb,
        step_seconds=round(step, 4),
        preference_seconds=round(preference_seconds(spec, lengths, step=pair_step), 1),
        train_seconds=round(whole, 1),
        why=why,
    )


def _why(found: list[Estimate], fitting: list[Estimate], device: Device) -> str:
    free = f"{device.free_gb:.1f} GB are free"
    words = f"the fastest of {len(fitting)} plans that fit, out of {len(found)}; {free}"
    if found[0].way.precision != fitting[0].way.precision:
        least = min(e.memory.peak_gb for e in found if e.way.precision == found[0].way.precision)
        words += f", 16-bit weights would need {least + margin_gb(least, device):.1f}"
    if device.is_gpu and not rates(device).known:
        words += f"; the speed of {device.name} is a guess"
    return words


def _too_large(
    spec: TrainSpec,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    *,
    engine: Engine,
    smallest: Estimate,
    lessons: Lessons,
) -> OutOfMemory:
    """The refusal, with what would fit."""
    needed = smallest.memory.peak_gb + margin_gb(smallest.memory.peak_gb, device)
    where = "the GPU" if device.is_gpu else "this machine"
    free = [f"unset train.{name}" for name in _PINS if getattr(spec, name) is not None]
    pinless = spec.model_copy(update=dict.fromkeys(_PINS))
    unpinned = estimates(pinless, shape, lengths, device, engine=engine, lessons=lessons)
    choices: list[str] = []
    param = "base_model"
    if free and any(e.fits(device) for e in unpinned):
        choices.append(" or ".join(free))
        param = free[0].removeprefix("unset ")
    elif length := _length_that_fits(
        pinless, shape, lengths, device, engine=engine, lessons=lessons
    ):
        choices.append(f"set train.max_length to {length} (the longest row has {lengths.longest})")
        param = "train.max_length"
    choices.append(f"use {where} with {needed:.1f} GB free, or a smaller base model")
    detail = ", ".join(described(smallest.way, spec.step_rows))
    return OutOfMemory(
        f"{spec.base_model.name} does not fit. The smallest way to train it ({detail}) needs "
        f"{needed:.1f} GB with a margin, but {device.name} has {device.free_gb:.1f} GB free.",
        param=param,
        hint=_sentence("; ".join(choices)),
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _length_that_fits(
    spec: TrainSpec,
    shape: Shape,
    lengths: Lengths,
    device: Device,
    *,
    engine: Engine,
    lessons: Lessons,
) -> int | None:
    """The longest `max_length` that fits, a multiple of 64; None: not even 64 tokens do."""

    def fits(longest: int) -> bool:
        shorter = cut(lengths, longest)
        found = estimates(spec, shape, shorter, device, engine=engine, lessons=lessons)
        return any(e.fits(device) for e in found)

    # shorter rows never take more, so the candidates are ordered: those that fit, then the others
    candidates = range(64, (lengths.longest - 1) // 64 * 64 + 1, 64)
    fitting = bisect_left(candidates, True, key=lambda longest: not fits(longest))
    return candidates[fitting - 1] if fitting else None
