"""How an exported model is proven where it serves: what export saw, what register checks."""

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_PATH

#: Artifact of export: a `ServingReference` as JSON.
REFERENCE = "serving_reference.json"
#: Artifacts of export: the adapter as a GGUF LoRA, and what it is served on.
ADAPTER_GGUF = "gguf/adapter.gguf"
#: Bases that adapters are served on, as `SERVED_BASE:NAME-DIGEST` in Ollama.
SERVED_BASE = "locollm-base"
#: Where their GGUFs are kept, below the folder of base models, as `NAME.KEY.QUANTIZATION.gguf`.
SERVED_FOLDER = "served"
#: Bytes of a trained adapter that become a GGUF a second, on the slow side (docs/adr/0027).
ADAPTER_RATE = 20e6
#: An adapter whose own GGUF takes less (s) is written unasked.
MOST_ADAPTER_SECONDS = 5.0
#: Name of the reference's prompt that is a question of ours: base and adapter answer it alike.
PLAIN = "plain"
#: What `plain` asks.
PROBE = "What is 2 + 2?"


class ServedBase(Contract):
    """The base that adapters are served on: one GGUF, with the template of the training."""

    model: str = Field(max_length=300, description="Its name in Ollama.")
    blob: str = Field(max_length=100, description="`sha256:…` of its GGUF.")
    path: str = Field(
        max_length=4 * LONGEST_PATH, description="The GGUF, relative to the folder of base models."
    )
    size: int = Field(description="Its bytes.")


class ReferencePrompt(Contract):
    """One conversation as training renders it, and what the exported GGUF answers to it."""

    name: str = Field(description="What it tries, e.g. `system`, `multi_turn`, `validation-3`.")
    messages: tuple[dict[str, str], ...] = Field(
        description="The conversation (`role` and `content`) before the requested answer."
    )
    rendered: str = Field(description="The prompt as the chat template of training renders it.")
    tokens: int = Field(description="Tokens of the rendered prompt, by the training's tokenizer.")
    answer: str | None = Field(
        None,
        description="Greedy answer of the GGUF run directly in llama.cpp. Null: not asked.",
    )
    num_predict: int | None = Field(
        None, description="Limit of generated tokens for this answer. Null: the reference's limit."
    )
    answer_tokens: int = Field(0, description="Tokens of the answer.")
    ended: bool = Field(False, description="Whether the answer ended by itself.")


class ServingReference(Contract):
    """What a served model must be like to be what was exported."""

    prompts: tuple[ReferencePrompt, ...] = Field(description="Conversations to compare.")
    num_predict: int = Field(
        description="Limit of generated tokens for answers without their own limit."
    )
    chat_template_sha256: str = Field(description="SHA-256 of the chat template in the GGUF.")
    architecture: str = Field(description="`general.architecture` of the GGUF.")
    context_length: int = Field(description="Longest context of the model, tokens.")
    parameter_count: int = Field(description="Number of weights in all tensors.")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = Field(
        description="GGUF type and shape of each tensor."
    )
    vocabulary: int = Field(description="Number of tokens in the vocabulary.")
    vocabulary_sha256: str = Field(
        description="SHA-256 of the tokens as a JSON list (`json.dumps(tokens)`), in order."
    )
    thinks: bool = Field(description="Whether the chat template has a place for thoughts.")


class Check(Contract):
    """One check of a served model, with its evidence."""

    name: str = Field(description="What was checked, e.g. `rendered_prompt`.")
    passed: bool = Field(description="Whether the check passed.")
    expected: str = Field(description="What was expected.")
    seen: str = Field(description="What was found.")
    fix: str | None = Field(None, description="What to do if it failed.")


def exported_base(candidate: str) -> str:
    """Name in Ollama of the base that went through the same export as a candidate."""
    return f"{candidate}-base"
