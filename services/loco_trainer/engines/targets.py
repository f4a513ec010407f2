"""Which layers get an adapter."""

from typing import Any

from loco.contracts.errors import TrainingFailed
from loco.contracts.specs import TrainSpec

#: The linear layers of a transformer block, by the names Llama, Qwen, Mistral and Gemma share.
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def check_targets(model: Any, spec: TrainSpec) -> None:
    """Refuses names of layers that the base lacks, and layers whose adapter export could not merge.

    Args:
        model: the base, a transformers causal language model.
        spec: the recipe.

    Raises:
        TrainingFailed: says which name, and which there are.
    """
    import torch

    asked = spec.lora.target_modules
    if isinstance(asked, str):
        return
    layers = {name: module for name, module in model.named_modules() if name}
    linear = {name for name, module in layers.items() if isinstance(module, torch.nn.Linear)}
    tied = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    known = sorted({name.rpartition(".")[2] for name in linear if layers[name] is not tied})
    for target in asked:
        named = {n for n in layers if n == target or n.endswith(f".{target}")}
        if not named:
            fault = f"{spec.base_model.name} has no layer {target}"
        elif named - linear:
            fault = f"{target} is no linear layer"
        elif any(layers[name] is tied for name in named):
            fault = (
                f"{target} shares its weights with the embedding, so an adapter cannot be merged"
            )
        else:
            continue
        raise TrainingFailed(
            f"train.lora.target_modules: {fault}.",
            param="train.lora.target_modules",
            hint=f"Take all-linear, or some of {', '.join(known)}.",
        )
