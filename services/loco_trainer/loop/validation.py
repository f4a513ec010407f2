"""The loss on rows that are not trained on, by the base and by the trained model."""

from collections.abc import Sequence

import torch

from loco.contracts.results import ValidationRow
from loco_trainer.data.rows import Row
from loco_trainer.engines.loaded import Loaded


def measure(loaded: Loaded, rows: Sequence[Row], *, micro_batch: int) -> tuple[ValidationRow, ...]:
    """Mean loss of each row's answer tokens with the adapter and without it, dropout off.

    Args:
        loaded: the trained model.
        rows: as tokenized for training.
        micro_batch: rows a forward pass.
    """
    if not rows:
        return ()
    loaded.model.eval()
    after, tokens = _row_losses(loaded, rows, micro_batch)
    with loaded.model.disable_adapter():
        before, _ = _row_losses(loaded, rows, micro_batch)
    return tuple(
        ValidationRow(tokens=count, base_loss=old, loss=new)
        for count, old, new in zip(tokens, before, after, strict=True)
    )


def _row_losses(
    loaded: Loaded, rows: Sequence[Row], micro_batch: int
) -> tuple[list[float], list[int]]:
    """Mean loss of each row in nats a token, and its answer tokens."""
    device = next(loaded.model.parameters()).device
    means: list[float] = []
    tokens: list[int] = []
    with torch.no_grad(), loaded.computing():
        for start in range(0, len(rows), micro_batch):
            batch = loaded.lay_out(list(rows[start : start + micro_batch])).to(device)
            losses = loaded.losses(batch).double().cpu()
            means += [float(part.mean()) for part in losses.split(list(batch.answers))]
            tokens += batch.answers
    return means, tokens
