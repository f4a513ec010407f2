"""The loss on rows that are not trained on."""

from collections.abc import Sequence

import torch

from loco_trainer.engines import Loaded
from loco_trainer.rows import Row


def row_losses(loaded: Loaded, rows: Sequence[Row], *, micro_batch: int) -> list[float]:
    """Mean loss of each row's answer tokens, in nats a token, without dropout.

    Args:
        loaded: the model; its adapter counts unless it is switched off.
        rows: as tokenized for training.
        micro_batch: rows a forward pass.
    """
    device = next(loaded.model.parameters()).device
    loaded.model.eval()
    means: list[float] = []
    with torch.no_grad(), loaded.computing():
        for start in range(0, len(rows), micro_batch):
            batch = loaded.lay_out(list(rows[start : start + micro_batch])).to(device)
            losses = loaded.losses(batch).double().cpu()
            means += [float(part.mean()) for part in losses.split(list(batch.answers))]
    loaded.model.train()
    return means
