"""How much memory a way of training needs, from the model's shape and the rows' lengths.

Every constant is named here with its source; tests/planning/test_measured.py compares the sum
with what was measured.
"""

from dataclasses import dataclass

from loco.contracts.plans import Device, Engine, Lengths, Memory, Precision, Shape
from loco.contracts.specs import TrainSpec
from loco.planning.batches import largest_pass
from loco.planning.ways import WayLike

#: Bits of a linear weight held in NF4 with double quantization: 4, and a scale of 8 bits for each
#: 64 weights, whose own float32 scale serves 256 of them (QLoRA, Dettmers et al. 2023, section 3).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
#: Bytes of a trained parameter: float32 weight, gradient, AdamW's two moments, and a 16-bit copy.
_TRAINED_BYTES = 4 + 4 + 8 + 2
#: Bytes of the float32 logits that loco_trainer.fast.answer_loss holds at once: the smaller where
#: memory is short (activations are recomputed, or with unsloth), the larger where it is not.
TIGHT_CHUNK, WIDE_CHUNK = 128 << 20, 256 << 20
#: Bytes of a trained parameter in a checkpoint (float32 weight, AdamW's two moments), and how many
#: checkpoints lie on disk while the newest is written.
_CHECKPOINT_BYTES = 12
_CHECKPOINTS = 3
#: Bytes of a parameter of the best adapter so far, and of the one that pairs begin from, where they
#: are kept in each (float32).
_BEST_BYTES = 4

_BYTES: dict[Precision, float] = {"4bit": 2, "bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class _Engine:
    """What an engine keeps besides the tensors autograd needs."""

    #: Gradients of a block's activations that live at once, as a part of its widest tensors.
    gradients: float
    #: Whether inputs of recomputed blocks wait in RAM instead of on the GPU.
    offloads: bool
    #: Bytes reserved for nothing of the above: cuBLAS workspaces, indices, blocks half used.
    floor: float


#: unsloth writes gradients over activations and offloads the inputs of recomputed blocks to RAM
#: (its "unsloth" gradient checkpointing); floor measured on an H200 on 2026-11-22.
_GPU_ENGINES: dict[Engine, _Engine] = {
    "peft": _Engine(gradients=1.0, offloads=False, floor=0.25e9),
    "unsloth": _Engine(gradients=0.0, offloads=True, floor=0.2e9),
}
#: On a CPU no fused kernels: intermediate results in float32 nearly double what is kept, and the
#: process itself takes 0.6 GB (profile tiny: 2.3 GB in all).
_CPU_ENGINE = _Engine(gradients=1.0, offloads=False, floor=0.6e9)
_CPU_SAVED = 1.8
#: Bytes a value of dropout's mask: of bool on a GPU, on a CPU of the float32 factors themselves.
_GPU_MASK, _CPU_MASK = 1, 4
#: Recorded passes have a memory pool of their own, beside that of the unrecorded pass which each new
#: size begins with; rows of one length have one size, whose first pass is over by then.
_RECORDED = 2.0


def peak_memory(
    way: WayLike, spec: TrainSpec, shape: Shape, lengths: Lengths, device: Device
) -> Memory:
    """The expected peak of a way; on a CPU of the process, on a GPU without the CUDA context."""
    engine = _GPU_ENGINES[way.engine] if device.is_gpu else _CPU_ENGINE
    tokens = largest_pass(way, spec, lengths)
    answers = tokens * lengths.answer_tokens / lengths.tokens
    width = _BYTES[way.precision]
    tight = way.gradient_checkpointing or way.engine == "unsloth"
    # a logit is there in the width of the model, its probability in float32, its gradient narrow
    chunk = (TIGHT_CHUNK if tight else WIDE_CHUNK) / 4
    logits = (2 * width + 4) * min(answers * shape.vocab_size, chunk)
    mask = (_GPU_MASK if device.is_gpu else _CPU_MASK) / width
    block = kept_values(spec, shape, mask=mask) * width * (1.0 if device.is_gpu else _CPU_SAVED)
    gradients = (2 * shape.intermediate_size + 4 * shape.hidden_size) * width * engine.gradients
    if way.gradient_checkpointing:
        inputs = 0.0 if engine.offloads else shape.hidden_size * width * shape.num_hidden_layers
        activations = tokens * (inputs + block + gradients)
    else:
        activations = tokens * (shape.num_hidden_layers * block + gradients)
    if way.cuda_graphs and lengths.tokens < lengths.rows * lengths.longest:
        activations *= _RECORDED
        logits *= _RECORDED
    return Memory(
        weights_gb=_gb(weight_bytes(shape, way.precision)),
        adapter_gb=_gb(trained_parameters(spec, shape) * _TRAINED_BYTES),
        activations_gb=_gb(activations),
        logits_gb=_gb(logits),
        workspace_gb=_gb(engine.floor + _dequantized_bytes(shape, way.precision)),
    )


def checkpoint_bytes(spec: TrainSpec, shape: Shape) -> float:
    """Bytes that a run's checkpoints take at most."""
    more = (spec.select == "best") + (spec.preference is not None)
    each = _CHECKPOINT_BYTES + _BEST_BYTES * more
    return trained_parameters(spec, shape) * each * _CHECKPOINTS


def weight_bytes(shape: Shape, precision: Precision) -> float:
    """Bytes of the frozen base; embeddings are never quantized.

    Those of 4 bits are read from the files where they are known: *dynamic* quantizations leave some
    layers in 16 bits.
    """
    if precision == "4bit" and shape.quantized_bytes is not None:
        return shape.quantized_bytes
    linear = shape.parameters - shape.embedding_parameters
    width = NF4_BITS / 8 if precision == "4bit" else _BYTES[precision]
    return linear * width + shape.embedding_parameters * _BYTES[precision]


def trained_parameters(spec: TrainSpec, shape: Shape) -> int:
    """Parameters of the adapter: r * (inputs + outputs) for each adapted linear layer."""
    parts = shape.linear_parameters
    inputs = _inputs(shape)
    sides = {name: size + parts[name] // size for name, size in inputs.items()}
    return (
        shape.num_hidden_layers * spec.lora.r * sum(sides[name] for name in _targets(spec, shape))
    )


def kept_values(spec: TrainSpec, shape: Shape, *, mask: float) -> float:
    """Values a token that the backward pass of one block needs, recomputing nothing.

    A frozen linear layer needs no input; one with an adapter does, and shares it with its neighbours.
    With dropout each adapter has an input and a mask of its own (one block of Qwen3-4B's shape with
    PEFT 0.21 on an H100, 2026-11-24: 17,840 values more for q, k, v, o, 40,240 for all seven; here
    17,664 and 39,936). Norms, attention and SwiGLU need theirs.

    Args:
        spec: the recipe.
        shape: of the base.
        mask: what a value of dropout's mask takes, in values.
    """
    query = shape.num_attention_heads * shape.head_dim
    key = shape.num_key_value_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    targets = _targets(spec, shape)
    kept = hidden + hidden  # inputs of both norms
    kept += query + 2 * key  # q, k, v for attention
    kept += query  # its output, o_proj's input
    kept += 2 * inner  # gate and up for SwiGLU
    if shape.model_type.startswith("qwen3"):
        kept += query + key  # before their norms
    if spec.lora.dropout:
        inputs = _inputs(shape)
        return kept + (1 + mask) * sum(inputs[name] for name in targets)
    if targets & {"q_proj", "k_proj", "v_proj"}:
        kept += hidden
    if targets & {"gate_proj", "up_proj"}:
        kept += hidden
    if "down_proj" in targets:
        kept += inner
    return kept


def _inputs(shape: Shape) -> dict[str, int]:
    """Widths of the inputs of one block's linear layers."""
    own = {
        "o_proj": shape.num_attention_heads * shape.head_dim,
        "down_proj": shape.intermediate_size,
    }
    return dict.fromkeys(shape.linear_parameters, shape.hidden_size) | own


def _targets(spec: TrainSpec, shape: Shape) -> set[str]:
    """Adapted linear layers of a block; a name that the block lacks is the engine's to refuse."""
    names = shape.linear_parameters.keys()
    asked = spec.lora.target_modules
    return set(names) if isinstance(asked, str) else {n for n in asked if n in names}


def _dequantized_bytes(shape: Shape, precision: Precision) -> float:
    """A 4-bit layer is multiplied from a 16-bit copy; two of the largest live at once."""
    return 2 * 2 * max(shape.linear_parameters.values()) if precision == "4bit" else 0.0


def _gb(bytes_: float) -> float:
    return round(bytes_ / 1e9, 4)
