"""The nouns of a training plan: a model's shape, the rows' lengths, the device, and the plan itself.

`loco.planning.planner` chooses a plan from the other three; `loco_trainer.train` carries it out.
"""

from typing import Any, Literal, Self

from pydantic import Field, computed_field

from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest

Precision = Literal["4bit", "bf16", "fp16", "fp32"]
Engine = Literal["unsloth", "peft"]
Outcome = Literal["finished", "out_of_memory", "stopped"]
#: Fields by which configs of mixtures of experts count them: Qwen and OLMoE, Mixtral and gpt-oss,
#: DeepSeek and GLM, ERNIE.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def _largest(field: int | list[int] | None) -> int:
    """A number of a config, or the largest where it has one a layer; 0: none."""
    return max(field, default=0) if isinstance(field, list) else field or 0


class Shape(Contract):
    """What memory and arithmetic follow from, under the names of a Hugging Face config.json."""

    model_type: str = Field(description="Architecture, e.g. `qwen3` or `llama`.")
    hidden_size: int = Field(ge=1, description="Width of the residual stream.")
    intermediate_size: int = Field(ge=1, description="Width inside the MLP.")
    num_hidden_layers: int = Field(ge=1, description="Transformer blocks.")
    num_attention_heads: int = Field(ge=1, description="Query heads.")
    num_key_value_heads: int = Field(ge=1, description="Key and value heads.")
    head_dim: int = Field(ge=1, description="Width of one head.")
    vocab_size: int = Field(ge=1, description="Rows of the embedding.")
    tie_word_embeddings: bool = Field(description="Whether the output layer is the embedding.")
    sliding_window: int | None = Field(
        None,
        description="How many tokens a layer looks back at most, if some layer has such a limit.",
    )

    quantized_bytes: int | None = Field(
        None,
        description="Size of the weights in bytes as stored in 4 bits (some layers perhaps in 16). "
        "Null: plain NF4.",
    )

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """The shape in a config.json (its `text_config`, where it has one).

        Raises:
            KeyError: it is no decoder's config.
            InvalidRequest: it is a mixture of experts, whose layers this shape does not describe.
        """
        config = config.get("text_config") or config
        experts = {n: config[n] for n in _EXPERTS if n in config and _largest(config[n]) > 1}
        if experts:
            found = ", ".join(f"{name} {count}" for name, count in experts.items())
            raise InvalidRequest(
                f"The base model is a mixture of experts ({found} in its config.json). locollm "
                "cannot plan its memory or merge its experts.",
                param="base_model",
                hint="Name a dense base model in adapters/base_models.yaml.",
            )
        heads = config["num_attention_heads"]
        hidden = config["hidden_size"]
        return cls(
            model_type=config.get("model_type", "unknown"),
            hidden_size=hidden,
            intermediate_size=_largest(config.get("intermediate_size")) or 4 * hidden,
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab_size=config["vocab_size"],
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            # Qwen's configs name a window that they do not use
            sliding_window=config.get("sliding_window")
            if config.get("use_sliding_window", True)
            else None,
        )

    @property
    def linear_parameters(self) -> dict[str, int]:
        """Parameters of one block's linear layers, by their usual names."""
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": self.hidden_size * query,
            "k_proj": self.hidden_size * key,
            "v_proj": self.hidden_size * key,
            "o_proj": query * self.hidden_size,
            "gate_proj": self.hidden_size * self.intermediate_size,
            "up_proj": self.hidden_size * self.intermediate_size,
            "down_proj": self.intermediate_size * self.hidden_size,
        }

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and, where it is apart, the output layer."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        """Parameters of the model (norms left out)."""
        blocks = self.num_hidden_layers * sum(self.linear_parameters.values())
        return blocks + self.embedding_parameters


class Lengths(Contract):
    """How long the tokenized rows are."""

    rows: int = Field(ge=1, description="Rows trained on.")
    tokens: int = Field(ge=1, description="Tokens of all rows.")
    answer_tokens: int = Field(ge=1, description="Trained tokens (the loss counts them).")
    p50: int = Field(ge=1, description="Median row, in tokens.")
    p95: int = Field(ge=1, description="95 % of the rows have at most this many tokens.")
    longest: int = Field(ge=1, description="Longest row, in tokens.")
    pairs: "Lengths | None" = Field(
        None,
        description="The same for train.preference, where each pair is two rows. Null: no pairs.",
    )

    @property
    def mean(self) -> float:
        """Mean row, in tokens."""
        return self.tokens / self.rows


class Device(Contract):
    """What a worker trains on."""

    name: str = Field(description="`cpu` or the GPU's name.")
    memory_gb: float = Field(gt=0, description="Memory of the GPU, or of the machine, 10^9 bytes.")
    free_gb: float = Field(ge=0, description="Free memory, 10^9 bytes.")
    compute_capability: float | None = Field(
        None, description="Compute capability of an NVIDIA GPU, e.g. 8.6."
    )
    cores: int | None = Field(None, ge=1, description="CPU cores that training may use.")

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name != "cpu"


class Plan(Contract):
    """How a training run uses its device. None of it changes what is learnt, but the precision."""

    engine: Engine = Field(description="Which engine trains.")
    precision: Precision = Field(description="How the frozen base is kept in memory.")
    micro_batch: int = Field(ge=1, description="Rows per forward pass.")
    accumulation: int = Field(ge=1, description="Forward passes per optimizer step.")
    gradient_checkpointing: bool = Field(
        description="Compute activations again in the backward pass: slower, but far less memory."
    )
    padding_free: bool = Field(
        description="Put the rows of a forward pass end to end instead of padding them."
    )
    cuda_graphs: bool = Field(
        False, description="Record forward passes of the same size once and replay them."
    )
    pairs: int | None = Field(
        None, ge=1, description="Pairs per forward pass of train.preference. Null: no pairs."
    )
    max_length: int = Field(ge=1, description="Longest row, in tokens.")
    memory_gb: float = Field(
        ge=0, description="Expected peak of reserved memory, 10^9 bytes, without the CUDA context."
    )
    memory_factor: float = Field(
        1.0,
        gt=0,
        description="Correction from earlier runs, 10^9 bytes; already in memory_gb.",
    )
    rows_gb: float | None = Field(
        None,
        ge=0,
        description="Peak for the rows as computed, without that correction, 10^9 bytes.",
    )
    pairs_gb: float | None = Field(
        None,
        ge=0,
        description="Peak for the pairs as computed, without that correction, 10^9 bytes.",
    )
    device: str = Field("", description="Device it was made for: `cpu` or the GPU's name.")
    free_gb: float | None = Field(
        None, description="Memory that was free when it was made, 10^9 bytes."
    )
    step_seconds: float = Field(ge=0, description="Expected seconds of an optimizer step.")
    preference_seconds: float = Field(
        0.0, ge=0, description="Expected seconds of train.preference, included in train_seconds."
    )
    train_seconds: float = Field(ge=0, description="Expected seconds of the whole stage train.")
    why: str = Field("", description="Why this plan, in words.")


class PlanAttempt(Contract):
    """A plan that was tried, and how far it came."""

    plan: Plan = Field(description="What was tried.")
    first_step: int = Field(description="First optimizer step of this try.")
    last_step: int = Field(
        description="Last optimizer step it finished. One less than the first: it finished none."
    )
    pairs_from: int | None = Field(
        None, ge=1, description="First optimizer step on pairs. Null: all steps are on rows."
    )
    peak_memory_gb: float = Field(
        description="Peak of reserved GPU memory, 10^9 bytes; 0 on a CPU."
    )
    outcome: Outcome = Field(description="How it ended.")

    @property
    def began_on_pairs(self) -> bool:
        """Whether its first step was on pairs: no figure of it is of rows."""
        return self.pairs_from is not None and self.first_step >= self.pairs_from

    @property
    def ended_on_pairs(self) -> bool:
        """Whether what came after its last step was on pairs: what memory ran out for."""
        return self.pairs_from is not None and self.last_step + 1 >= self.pairs_from


class Memory(Contract):
    """Expected peak of reserved memory by what takes it, 10^9 bytes."""

    weights_gb: float = Field(description="The frozen base.")
    adapter_gb: float = Field(description="The adapter, its gradients and AdamW's moments.")
    activations_gb: float = Field(description="What the backward pass needs for the largest batch.")
    logits_gb: float = Field(description="Logits of the answer tokens of one chunk.")
    workspace_gb: float = Field(description="Dequantized layers, matrix library and rounding.")
    learned_gb: float = Field(
        0.0, description="What earlier runs needed beyond the estimate. Below 0: they needed less."
    )

    @computed_field(description="The sum.")  # type: ignore[prop-decorator]
    @property
    def peak_gb(self) -> float:
        """The sum."""
        parts = (self.weights_gb, self.adapter_gb, self.activations_gb, self.logits_gb)
        return round(sum(parts) + self.workspace_gb + self.learned_gb, 3)
