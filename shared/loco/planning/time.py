"""How long a way of training takes: operations over rates, bytes over bandwidth, fixed costs.

Constants are named here with their source; the lab's own runs correct the sum (`loco.planning.history`).
"""

from dataclasses import dataclass

from loco.contracts.plans import Device, Engine, Lengths, Shape
from loco.contracts.specs import TrainSpec
from loco.planning.batches import of_pairs, tokens_a_pass, total_steps
from loco.planning.memory import weight_bytes
from loco.planning.rates import Rates, rates
from loco.planning.ways import WayLike

#: Tokens at which half of that is reached: fewer leave multiprocessors idle.
_HALF_FULL_TOKENS = 256
#: Bytes a token a block that norms, rotary embedding, SwiGLU, residuals and adapters move in
#: forward and backward, in widths of the residual stream and of the MLP (16-bit values).
_MOVED_HIDDEN = 30
_MOVED_INNER = 10


@dataclass(frozen=True)
class _Costs:
    """What an engine costs beside the arithmetic; launches are those of a server's CPU."""

    #: Part of the sustained matrix rate that layers of a few thousand tokens reach.
    efficiency: float
    #: Seconds of launching the kernels of a block, forward and backward.
    block: float
    #: More where layers are dequantized first.
    four_bit: float
    #: Times of that where activations are computed again.
    again: float
    #: Seconds from the program's start to the model's loading: imports.
    imports: float
    #: Seconds of compiling before and in the first step.
    compiling: float


#: peft: a pass of 8 GSM8K rows in bfloat16 takes 158 to 180 ms launched and 57 ms recorded, of 2 full
#: rows in 4 bits, recomputed, 329 ms launched and 123 ms recorded, of 8 full rows 288 ms.
#: unsloth: a step of 4 passes of 2 rows in 4 bits takes 1.15 to 1.22 s, one of 8 rows in bfloat16
#: 0.16 s, of 8 full rows 0.30 s; 37 to 45 s to the first step (one H200, 36 blocks, 2026-11-22).
_COSTS: dict[Engine, _Costs] = {
    "peft": _Costs(
        efficiency=0.72, block=4.4e-3, four_bit=1.9e-3, again=1.45, imports=9.0, compiling=3.0
    ),
    "unsloth": _Costs(
        efficiency=0.68, block=4.2e-3, four_bit=2.2e-3, again=1.3, imports=17.0, compiling=14.0
    ),
}
#: Seconds a block that the GPU waits between the kernels of a pass that is launched one by one, even
#: where launching is not what takes longest: 288 ms a step of which it computes 262 (8 full rows).
_GAPS = 0.6e-3
#: What replaying a recorded pass costs, seconds.
_REPLAY_SECONDS = 2e-3
#: Seconds an optimizer step costs besides its passes: clipping, AdamW, logging.
_OPTIMIZER_SECONDS = 5e-3
#: Seconds of recording the passes of one size in the first steps, and the sizes of a run.
_RECORDING_SECONDS = 0.4
_RECORDED_SIZES = 8
#: Bytes a second from disk to the device (safetensors in the page cache, one H200 machine).
_LOAD_RATE = 2.5e9
#: Part of the time that checkpoints take; the trainer writes no more often.
_CHECKPOINTS = 0.03
#: Part of a step's seconds that its forward passes take alone: one of a frozen layer's two products.
_FORWARD = 0.5
#: Operations a second of one CPU core: SmolLM2-135M, 8 rows of GSM8K in 9 s on two cores with
#: avx512_bf16.
_CORE_RATE = 45e9
#: On a CPU: imports, and loading a model that is in the page cache.
_CPU_START_SECONDS = 12.0
_DEFAULT_CORES = 4


def step_seconds(
    way: WayLike, spec: TrainSpec, shape: Shape, lengths: Lengths, device: Device
) -> float:
    """Expected seconds of an optimizer step."""
    passes = spec.step_rows / way.micro_batch
    tokens = tokens_a_pass(way, spec, lengths)
    operations = _operations(way, shape, lengths, tokens)
    if not device.is_gpu:
        return passes * operations / (_CORE_RATE * (device.cores or _DEFAULT_CORES))
    speed = rates(device)
    reached = _COSTS[way.engine].efficiency * tokens / (tokens + _HALF_FULL_TOKENS)
    busy = operations / (speed.operations * reached)
    busy = max(busy, _weight_reads(way) * weight_bytes(shape, "bf16") / speed.bandwidth)
    busy += _moving(way, shape, tokens, speed)
    launched = _REPLAY_SECONDS if way.cuda_graphs else _launches(way, shape)
    busy += 0.0 if way.cuda_graphs else _GAPS * shape.num_hidden_layers
    return passes * max(busy, launched) + _OPTIMIZER_SECONDS


def start_seconds(way: WayLike, shape: Shape, device: Device) -> float:
    """Expected seconds from the program's start to its first step's beginning."""
    if not device.is_gpu:
        return _CPU_START_SECONDS + weight_bytes(shape, "fp32") / _LOAD_RATE
    costs = _COSTS[way.engine]
    # a 4-bit base is quantized on the GPU from 16 bits unless it is stored so
    loading = weight_bytes(shape, "bf16") / _LOAD_RATE
    recording = _RECORDED_SIZES * _RECORDING_SECONDS if way.cuda_graphs else 0.0
    return costs.imports + loading + costs.compiling + recording


def train_seconds(
    spec: TrainSpec, lengths: Lengths, *, start: float, step: float, pair_step: float = 0.0
) -> float:
    """Expected seconds of stage train, whole.

    Args:
        spec: the recipe.
        lengths: of its rows, and of its pairs.
        start: seconds before the first step.
        step: seconds of a step on rows.
        pair_step: seconds of a step on pairs.
    """
    steps = total_steps(spec, lengths.rows) * step * (1 + _CHECKPOINTS)
    return start + steps + preference_seconds(spec, lengths, step=pair_step)


def preference_seconds(spec: TrainSpec, lengths: Lengths, *, step: float) -> float:
    """Expected seconds of the part on pairs: its steps, and a pass forward over all for the reference.

    Args:
        spec: the recipe.
        lengths: of its pairs.
        step: seconds of a step on pairs.
    """
    if spec.preference is None or lengths.pairs is None:
        return 0.0
    recipe = of_pairs(spec, spec.preference)
    reference = _FORWARD * lengths.pairs.rows / recipe.step_rows
    return step * (total_steps(recipe, lengths.pairs.rows) * (1 + _CHECKPOINTS) + reference)


def operations_a_step(shape: Shape, lengths: Lengths, step_rows: int) -> float:
    """The arithmetic floor of a step: nothing padded, nothing computed twice."""
    return _arithmetic(shape, lengths, step_rows * lengths.mean, times=2)


def _operations(way: WayLike, shape: Shape, lengths: Lengths, tokens: float) -> float:
    return _arithmetic(shape, lengths, tokens, times=3 if way.gradient_checkpointing else 2)


def _arithmetic(shape: Shape, lengths: Lengths, tokens: float, *, times: int) -> float:
    """Operations on some tokens.

    Each of the passes over a frozen layer (forward, gradient of its input, recomputing) takes 2
    operations a parameter and token. Causal attention takes 2 * length * width forward and 2.5
    times that backward (FlashAttention-2, Dao 2023, section 3.1). The output layer sees answers.
    """
    linear = shape.parameters - shape.embedding_parameters
    width = shape.num_attention_heads * shape.head_dim * shape.num_hidden_layers
    attention = 2 * lengths.mean * width * (times - 1 + 2.5)
    answers = tokens * lengths.answer_tokens / lengths.tokens
    head = 2 * 2 * shape.vocab_size * shape.hidden_size
    return tokens * (2 * times * linear + attention) + answers * head


def _weight_reads(way: WayLike) -> float:
    """Times a pass moves all weights in 16 bits; 4-bit ones are also written after dequantizing."""
    reads = 3 if way.gradient_checkpointing else 2
    return reads * (2.25 if way.precision == "4bit" else 1.0)


def _moving(way: WayLike, shape: Shape, tokens: float, speed: Rates) -> float:
    """Seconds of what is bound by bandwidth: elementwise kernels, and dequantizing."""
    values = _MOVED_HIDDEN * shape.hidden_size + _MOVED_INNER * shape.intermediate_size
    again = 1.3 if way.gradient_checkpointing else 1.0
    moved = 2 * values * tokens * shape.num_hidden_layers * again
    if way.precision == "4bit":
        moved += (3 if way.gradient_checkpointing else 2) * 1.25 * weight_bytes(shape, "bf16")
    return moved / speed.bandwidth


def _launches(way: WayLike, shape: Shape) -> float:
    costs = _COSTS[way.engine]
    block = costs.block + (costs.four_bit if way.precision == "4bit" else 0.0)
    again = costs.again if way.gradient_checkpointing else 1.0
    return shape.num_hidden_layers * block * again
