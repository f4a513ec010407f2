"""The ways a recipe could be trained on a device: what the planner chooses from.

A way fixes all that memory and time follow from. The recipe's pins cut the choice; what no pin
decides is free, because none of it changes the optimizer's steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt
from typing import Protocol, Self

from loco.contracts.errors import InvalidRequest
from loco.contracts.plans import Device, Engine, Plan, Precision, Shape
from loco.contracts.specs import TrainSpec

#: From here on NVIDIA GPUs multiply bfloat16 and run FlashAttention over rows of unequal length.
AMPERE = 8.0
#: Divisors that an error names.
_SHOWN = 12
#: Architectures whose layers all are causal attention over the tokens before, RMS norm and SwiGLU: what
#: loco_trainer.fast.attention and .kernels compute. Rows of others are padded, and have their own masks.
PLAIN_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


class WayLike(Protocol):
    """What a way and a plan have in common."""

    @property
    def engine(self) -> Engine:
        """Which engine trains."""
        ...

    @property
    def precision(self) -> Precision:
        """How the frozen base is held."""
        ...

    @property
    def micro_batch(self) -> int:
        """Rows a forward pass."""
        ...

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        ...

    @property
    def padding_free(self) -> bool:
        """Whether rows are laid end to end."""
        ...

    @property
    def cuda_graphs(self) -> bool:
        """Whether forward passes are recorded and replayed."""
        ...


@dataclass(frozen=True)
class Way:
    """One way to train."""

    engine: Engine
    precision: Precision
    micro_batch: int
    gradient_checkpointing: bool
    padding_free: bool
    cuda_graphs: bool

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The way a plan goes."""
        return cls(
            engine=plan.engine,
            precision=plan.precision,
            micro_batch=plan.micro_batch,
            gradient_checkpointing=plan.gradient_checkpointing,
            padding_free=plan.padding_free,
            cuda_graphs=plan.cuda_graphs,
        )

    @property
    def simplicity(self) -> tuple[bool, bool, bool]:
        """Sorts ways that are as fast as each other, the simplest first.

        Rows laid end to end are simpler than padded ones: they need no mask.
        """
        return (self.cuda_graphs, self.gradient_checkpointing, not self.padding_free)


def ways(spec: TrainSpec, shape: Shape, device: Device, *, engine: Engine) -> list[Way]:
    """Every way that model and device can go and the recipe's pins allow.

    Raises:
        InvalidRequest: the pinned micro-batch does not divide the rows of a step.
    """
    flags = (False, True)
    checkpointing = flags if spec.gradient_checkpointing is None else (spec.gradient_checkpointing,)
    layouts = paddings(spec, shape, device, engine=engine)
    return [
        Way(engine, precision, micro, again, free, graphs)
        for precision, micro, again, free, graphs in product(
            precisions(spec, device),
            micro_batches(spec),
            checkpointing,
            layouts,
            _recordings(spec, layouts, device, engine=engine),
        )
        if free or not graphs  # buckets of tokens are graphed, not padded rectangles
    ]


def own_splits(spec: TrainSpec, shape: Shape, device: Device, *, engine: Engine) -> list[Way]:
    """The recipe's own batches, recorded first where they may be."""
    own = own_split(spec, shape, device, engine=engine)
    layouts = paddings(spec, shape, device, engine=engine)
    recordings = {False, *_recordings(spec, layouts, device, engine=engine)}
    return [replace(own, cuda_graphs=recorded) for recorded in sorted(recordings, reverse=True)]


def own_split(spec: TrainSpec, shape: Shape, device: Device, *, engine: Engine) -> Way:
    """The recipe's own batches: batch_size rows a pass, 4 bits and recomputing on a GPU.

    What is left where nothing better fits, and what a CPU does, where more rows a pass gain little.
    """
    four_bit = device.is_gpu and spec.load_in_4bit is not False
    checkpointing = spec.gradient_checkpointing
    return Way(
        engine=engine,
        precision="4bit" if four_bit else wide(device),
        micro_batch=micro_batches(spec)[0] if spec.micro_batch else spec.batch_size,
        gradient_checkpointing=device.is_gpu if checkpointing is None else checkpointing,
        padding_free=max(paddings(spec, shape, device, engine=engine)),
        cuda_graphs=False,
    )


def precisions(spec: TrainSpec, device: Device) -> tuple[Precision, ...]:
    """How the frozen base may be held; the widest first."""
    if not device.is_gpu:
        return ("fp32",)  # bitsandbytes needs CUDA; the engine may still compute in bfloat16
    if spec.load_in_4bit is None:
        return (wide(device), "4bit")
    return ("4bit",) if spec.load_in_4bit else (wide(device),)


def wide(device: Device) -> Precision:
    """The precision of a base that is not quantized."""
    if not device.is_gpu:
        return "fp32"
    return "bf16" if has_ampere(device) else "fp16"


def has_ampere(device: Device) -> bool:
    """Whether the GPU is of compute capability 8.0 or later; one that does not say is taken to be."""
    return device.compute_capability is None or device.compute_capability >= AMPERE


def divisors_of(number: int) -> tuple[int, ...]:
    """Its divisors, the largest first, in steps of its square root."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return tuple(sorted({*small, *(number // n for n in small)}, reverse=True))


def micro_batches(spec: TrainSpec) -> tuple[int, ...]:
    """Rows a forward pass that divide a step's rows, the most first; only the pinned one if any.

    Raises:
        InvalidRequest: the pinned one does not divide them.
    """
    rows = spec.step_rows
    divisors = divisors_of(rows)
    if spec.micro_batch is None:
        return divisors
    if spec.micro_batch not in divisors:
        raise InvalidRequest(
            f"micro_batch {spec.micro_batch} does not divide the {rows} rows of an optimizer step "
            f"(batch_size {spec.batch_size} x gradient_accumulation {spec.gradient_accumulation}).",
            param="train.micro_batch",
            hint=f"Use one of {', '.join(map(str, divisors[::-1][:_SHOWN]))}, or leave it out.",
        )
    return (spec.micro_batch,)


def _recordings(
    spec: TrainSpec, layouts: tuple[bool, ...], device: Device, *, engine: Engine
) -> tuple[bool, ...]:
    """Whether passes may be recorded; where they cannot be, a pin on it is passed over.

    Dropout draws anew in every pass, which a recording of it would have to be told.

    Raises:
        InvalidRequest: padded rows are to be recorded.
    """
    if not device.is_gpu or engine != "peft":
        return (False,)
    if spec.cuda_graphs and spec.padding_free is False:
        raise InvalidRequest(
            "train.cuda_graphs does not work with padded rows.",
            param="train.cuda_graphs",
            hint="Unset train.padding_free or train.cuda_graphs.",
        )
    if True not in layouts or spec.lora.dropout:
        return (False,)
    return (False, True) if spec.cuda_graphs is None else (spec.cuda_graphs,)


def paddings(spec: TrainSpec, shape: Shape, device: Device, *, engine: Engine) -> tuple[bool, ...]:
    """Whether rows may be padded (False) or laid end to end (True)."""
    able = (
        engine == "peft"
        and (not device.is_gpu or has_ampere(device))
        and shape.model_type in PLAIN_DECODERS
        and (shape.sliding_window is None or spec.max_length <= shape.sliding_window)
    )
    if spec.padding_free is None:
        return (False, True) if able else (False,)
    return (spec.padding_free and able,)


def smaller(way: Way, spec: TrainSpec) -> Way | None:
    """The next way down after memory ran out; None at the floor.

    Half the rows a pass; with one row already, recomputed activations, at last nothing recorded.
    Pins are left behind: they say where to begin, and a finished run with the same optimizer steps
    beats a failed one.
    """
    if way.micro_batch > 1:
        rows = spec.step_rows
        half = next(n for n in divisors_of(rows) if n <= way.micro_batch // 2)
        return replace(way, micro_batch=half)
    if not way.gradient_checkpointing:
        return replace(way, gradient_checkpointing=True)
    return replace(way, cuda_graphs=False) if way.cuda_graphs else None


def kind_of(way: WayLike) -> tuple[Precision, bool, bool, bool]:
    """What makes ways alike, however many rows their passes have."""
    return (way.precision, way.gradient_checkpointing, way.padding_free, way.cuda_graphs)


def described(way: WayLike, rows: int) -> Iterator[str]:
    """A way in a few words, for people."""
    yield {"4bit": "4-bit base"}.get(way.precision, f"{way.precision} base")
    yield f"{way.micro_batch} x {rows // way.micro_batch} rows"
    yield "activations recomputed" if way.gradient_checkpointing else "activations kept"
    yield "no padding" if way.padding_free else "padded"
    if way.cuda_graphs:
        yield "CUDA graphs"
