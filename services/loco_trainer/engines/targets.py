"""Which layers get an adapter."""

import re
from pathlib import Path
from typing import Any

import torch

from loco.contracts.errors import TrainingFailed
from loco.contracts.specs import TrainSpec
from loco_trainer.merge import names

#: The linear layers of a transformer block, by the names Llama, Qwen, Mistral and Gemma share.
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Layers that some architectures (Phi-3, Phi-4-mini) hold as one.
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
_FIELD = "train.lora.target_modules"


def check(spec: TrainSpec, base: Path) -> None:
    """Refuses a run whose adapter export could not merge, before a weight is loaded.

    Args:
        spec: the recipe.
        base: folder of the 16-bit base, at least its config; where its tensors' names are not there
            yet (one file of weights, still to be fetched), only the recipe is checked.

    Raises:
        TrainingFailed: says which layer, and what to do.
    """
    model = names.hollow(base)
    _check_order(model, spec)
    layers = adapted_layers(model, spec)
    stored = names.stored_names(base)
    if stored is None:
        return
    known = names.on_disk(model, stored)
    if lost := [layer for layer in layers if f"{layer}.weight" not in known]:
        raise TrainingFailed(
            f"{len(lost)} of the {len(layers)} layers to adapt, e.g. {lost[0]}, are stored in "
            f"another form than {spec.base_model.name} has in training, so export could not "
            "merge them.",
            param=_FIELD,
            hint="Leave them out of train.lora.target_modules, or choose another base model.",
        )


def _check_order(model: Any, spec: TrainSpec) -> None:
    """Refuses an order of layers that a GGUF has no place for: llama.cpp has these fixed in its code."""
    config = model.config.get_text_config()
    if config.model_type == "gemma3_text":
        every, whole = 6, [kind == "full_attention" for kind in config.layer_types]
    elif config.model_type == "smollm3":
        every, whole = 4, [not turned for turned in config.no_rope_layers]
    else:
        return
    if any(kind != (number % every == 0) for number, kind in enumerate(whole, start=1)):
        raise TrainingFailed(
            f"{spec.base_model.name} has its layers in an unusual order for its family. A GGUF "
            f"assumes that exactly every {every}th layer is of the other kind, so the model "
            "would answer differently than trained.",
            param="base_model",
            hint="Choose a base model with the usual layer order of its family.",
        )


def adapted_layers(model: Any, spec: TrainSpec) -> list[str]:
    """Names of the layers that get an adapter: linear ones of the language model.

    Args:
        model: a transformers causal language model, with or without weights.
        spec: the recipe.

    Raises:
        TrainingFailed: the recipe names a layer that the base lacks, or one whose adapter export
            could not merge; says which, and which there are.
    """
    asked = named_layers(model, spec)
    beside = re.compile(beside_text(model) or "(?!)")  # that matches nothing
    layers = {n: m for n, m in model.named_modules() if n and not beside.fullmatch(n)}
    linear = [name for name, module in layers.items() if isinstance(module, torch.nn.Linear)]
    head = model.get_output_embeddings()
    if isinstance(asked, str):
        return [name for name in linear if layers[name] is not head]
    tied = head if model.config.get_text_config().tie_word_embeddings else None
    known = sorted({name.rpartition(".")[2] for name in linear if layers[name] is not tied})
    for target in asked:
        named = {n for n in layers if _is(n, target)}
        if not named:
            fault = f"{spec.base_model.name} has no layer {target}"
        elif named.difference(linear):
            fault = f"{target} is not a linear layer"
        elif any(layers[name] is tied for name in named):
            fault = (
                f"{target} shares its weights with the embedding, so an adapter cannot be merged"
            )
        else:
            continue
        raise TrainingFailed(
            f"{_FIELD}: {fault}.",
            param=_FIELD,
            hint=f"Use all-linear, or some of {', '.join(known)}.",
        )
    return [name for name in linear if any(_is(name, target) for target in asked)]


def named_layers(model: Any, spec: TrainSpec) -> str | list[str]:
    """The recipe's target modules by the names of this model: a fused layer stands for its parts.

    An adapter on `q_proj` alone has then a place in `qkv_proj`, and changes keys and values too.
    """
    asked = spec.lora.target_modules
    if isinstance(asked, str):
        return asked
    here = {name.rpartition(".")[2] for name, _ in model.named_modules()}

    def named(target: str) -> str:
        fused = _FUSED.get(target)
        return fused if fused and fused in here and target not in here else target

    return list(dict.fromkeys(map(named, asked)))


def beside_text(model: Any) -> str | None:
    """A pattern of the modules beside the language model; None where no linear layer is there.

    What looks at images or listens learns nothing from text, and a GGUF for text has no place for it.
    """
    names_of = {module: name for name, module in model.named_modules()}
    decoder, head = names_of[model.get_decoder()], names_of[model.get_output_embeddings()]
    if not decoder:
        return None
    beside = re.compile(rf"(?!{re.escape(decoder)}\.|{re.escape(head)}$).+")
    linear = (n for module, n in names_of.items() if isinstance(module, torch.nn.Linear))
    return beside.pattern if any(beside.fullmatch(name) for name in linear) else None


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
