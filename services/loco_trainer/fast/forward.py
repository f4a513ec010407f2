"""The forward pass of a batch: from token IDs to the losses of its answer tokens."""

from collections.abc import Callable
from typing import Any

import torch

from loco.planning.memory import TIGHT_CHUNK, WIDE_CHUNK
from loco_trainer.data.batches import Batch
from loco_trainer.fast.answer_loss import answer_losses

#: Fields of a config whose models do more to the logits than one matrix product.
_SHAPED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def losses_of(
    model: Any, *, tight: bool, positions: bool = True
) -> Callable[[Batch], torch.Tensor]:
    """A function from a batch to the losses of its answer tokens, [answers] in nats.

    Args:
        model: PEFT's model over a transformers causal language model.
        tight: whether memory is worth more than speed.
        positions: whether it takes the tokens' places in their rows (unsloth counts by itself).
    """
    base = model.get_base_model()
    head: Any = base.get_output_embeddings()
    # of a model that also sees, the config that shapes the logits is one level down
    config = base.config.get_text_config()
    plain = type(head) is torch.nn.Linear and head.bias is None and hasattr(base, "model")
    if not plain or any(getattr(config, name, None) for name in _SHAPED_LOGITS):
        return lambda batch: _from_logits(base, head, batch, positions=positions)

    chunk_bytes = TIGHT_CHUNK if tight else WIDE_CHUNK

    def losses(batch: Batch) -> torch.Tensor:
        hidden = base.model(**_arguments(batch, positions=positions)).last_hidden_state
        return answer_losses(
            hidden.flatten(0, 1)[batch.places],
            head.weight,
            batch.targets,
            chunk_bytes=chunk_bytes,
        )

    return losses


def _from_logits(base: Any, head: Any, batch: Batch, *, positions: bool) -> torch.Tensor:
    """For models whose output layer is adapted or no plain matrix product.

    The model's own forward pass scales and caps the logits; its output layer is given the places
    alone where a loss is taken, as one row.
    """

    def answers_only(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (arguments[0].flatten(0, 1)[batch.places].unsqueeze(0),)

    with head.register_forward_pre_hook(answers_only):
        logits = base(**_arguments(batch, positions=positions)).logits
    return torch.nn.functional.cross_entropy(
        logits.squeeze(0).float(), batch.targets, reduction="none"
    )


def _arguments(batch: Batch, *, positions: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if positions:
        arguments["position_ids"] = batch.position_ids
    if batch.starts is not None:
        return arguments | {"starts": batch.starts, "longest": batch.longest}
    return arguments | {"attention_mask": batch.attention_mask}
