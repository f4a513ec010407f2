"""The loss: negative log-likelihood of the answer tokens, projected onto the vocabulary in chunks.

With 150,000 words the logits of a few thousand tokens are gigabytes. Here only answer tokens are
projected, a chunk at a time, and each chunk's gradient is computed at once instead of its logits
being kept (as in Liger's fused linear cross-entropy; Hsu et al. 2024, arXiv:2410.10989, section 3.2).
"""

from typing import Any

import torch

from loco_trainer.data.rows import IGNORED


def chunk_rows(vocabulary: int, chunk_bytes: int) -> int:
    """Tokens projected at once."""
    return max(64, chunk_bytes // (4 * vocabulary) // 64 * 64)


class _AnswerLoss(torch.autograd.Function):
    """Sum of negative log-likelihoods; the output layer is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        chunk_bytes: int,
    ) -> torch.Tensor:
        """The loss, and already its gradient.

        Args:
            ctx: keeps the gradient.
            hidden: [tokens, width].
            weight: [vocabulary, width] of the output layer.
            targets: [tokens] token IDs; IGNORED counts nothing.
            chunk_bytes: size of one chunk's logits in float32.

        Returns:
            [tokens] float32, nats.
        """
        wanted = ctx.needs_input_grad[0]
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else None
        counted = targets != IGNORED
        index = targets.clamp(min=0).unsqueeze(1)
        size = chunk_rows(weight.shape[0], chunk_bytes)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            narrow = hidden[part] @ weight.t()
            # in one kernel from 16 to 32 bits: every pass over the vocabulary counts here
            logs = torch.log_softmax(narrow, dim=1, dtype=torch.float32)
            losses[part] = -logs.gather(1, index[part]).squeeze(1)
            if gradient is not None:
                slope = torch.exp(logs, out=logs)
                slope.scatter_add_(
                    1, index[part], slope.new_full((1, 1), -1.0).expand_as(index[part])
                )
                gradient[part] = slope.to(narrow.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(counted.unsqueeze(1)))
        return losses.mul_(counted)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Gradient of `hidden`."""
        (gradient,) = ctx.saved_tensors
        return gradient * slope.unsqueeze(1).to(gradient.dtype), None, None, None


def answer_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, chunk_bytes: int
) -> torch.Tensor:
    """Negative log-likelihood of each target, [tokens] in nats; see `_AnswerLoss.forward`."""
    losses: torch.Tensor = _AnswerLoss.apply(hidden, weight.to(hidden.dtype), targets, chunk_bytes)
    return losses
