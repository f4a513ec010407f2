"""Direct preference optimization: the loss of a pair, its passes, and the reference it starts from.

Rafailov et al. 2023, "Direct Preference Optimization", arXiv:2305.18290, eq. 7, with the right
answer's own loss beside it (Pang et al. 2024, "Iterative Reasoning Preference Optimization",
arXiv:2404.19733, eq. 1). Passes are those of rows: both answers of a pair are rows of one batch.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from loco.contracts.specs import PreferenceSpec
from loco.stage.program import Emitter
from loco_trainer.data.batches import Batch
from loco_trainer.data.pairs import Pair
from loco_trainer.engines.loaded import Loaded
from loco_trainer.loop.adapter_state import AdapterState
from loco_trainer.loop.passes import Passes

_FILE = "reference.safetensors"


class Losses(NamedTuple):
    """Of some pairs."""

    #: [pairs] the loss.
    loss: torch.Tensor
    #: [pairs] log-likelihood of the right answer over the wrong one, beyond the reference's; nats.
    margin: torch.Tensor


def losses_of_pairs(
    logs: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor, spec: PreferenceSpec
) -> Losses:
    """The loss of each pair.

    Args:
        logs: [pairs, 2] log-likelihood of the right and of the wrong answer, summed over tokens.
        reference: [pairs, 2] the same of the reference.
        tokens: [pairs] tokens of the right answer.
        spec: beta and nll.
    """
    change = logs - reference
    margin = change[:, 0] - change[:, 1]
    loss = -torch.nn.functional.logsigmoid(spec.beta * margin)
    return Losses(loss - spec.nll * logs[:, 0] / tokens, margin)


@dataclass(frozen=True)
class PairBatch:
    """The pairs of one forward pass, two rows each, the right answer's first."""

    rows: Batch
    #: [answers] which row each answer token is of.
    owners: torch.Tensor
    #: [pairs] tokens of the right answer.
    tokens: torch.Tensor
    #: [pairs, 2] log-likelihoods by the reference; zeros while it is measured.
    reference: torch.Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch on a device; the copies are not waited for."""
        return PairBatch(
            rows=self.rows.to(device),
            owners=self.owners.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            reference=self.reference.to(device, non_blocking=True),
        )


class PairPasses(Passes):
    """Passes over pairs, launched kernel by kernel: they are too large to be bound by launches.

    Figures are the means over the step's pairs of the loss, of margins above 0, and of the margin.
    """

    def __init__(self, loaded: Loaded, adapter: AdapterState, spec: PreferenceSpec) -> None:
        super().__init__(loaded, adapter, figures=3)
        self._spec = spec

    def lay_out(self, pairs: Sequence[Pair], reference: torch.Tensor | None = None) -> PairBatch:
        """The pairs of one micro-batch as tensors in RAM; the GPU may be busy meanwhile.

        Args:
            pairs: two rows each.
            reference: [pairs, 2] log-likelihoods by the reference; None: not known yet.
        """
        rows = self._loaded.lay_out([row for pair in pairs for row in pair.rows])
        answers = torch.tensor(rows.answers)
        return PairBatch(
            rows=rows,
            owners=torch.repeat_interleave(torch.arange(len(answers)), answers),
            tokens=answers[::2].float(),
            reference=torch.zeros(len(pairs), 2) if reference is None else reference,
        )

    def run(self, batch: PairBatch) -> None:
        """Forward and backward over a batch that `lay_out` made."""
        batch = batch.to(self._device)
        found = losses_of_pairs(self._logs(batch), batch.reference, batch.tokens, self._spec)
        loss = found.loss.sum() * self._share
        self._adapter.scaler.scale(loss).backward()
        margin = found.margin.detach()
        sums = torch.stack([found.loss.detach().sum(), (margin > 0).sum(), margin.sum()])
        self._figures += sums * self._share

    def logs(self, batch: PairBatch) -> torch.Tensor:
        """[pairs, 2] log-likelihoods of a batch's answers, on the device; without gradient."""
        with torch.no_grad():
            return self._logs(batch.to(self._device))

    def _logs(self, batch: PairBatch) -> torch.Tensor:
        with self._loaded.computing():
            losses = self._loaded.losses(batch.rows)
        sums = losses.new_zeros(2 * len(batch.tokens)).index_add(0, batch.owners, losses)
        return -sums.view(-1, 2)


class Reference:
    """What the answers' likelihoods were before the first step on pairs, and the adapter that gave them."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        #: [pairs, 2] log-likelihood of the right and of the wrong answer, nats.
        self._logs: torch.Tensor | None = None
        #: That adapter, flat, in RAM; kept for a base that is exchanged for one held otherwise. None:
        #: never measured.
        self.weights: torch.Tensor | None = None
        #: Seconds this process spent on it.
        self.seconds = 0.0

    @property
    def is_known(self) -> bool:
        """Whether it has been measured."""
        return self._logs is not None

    def of(self, numbers: Sequence[int]) -> torch.Tensor:
        """[pairs, 2] log-likelihoods of some pairs."""
        assert self._logs is not None
        return self._logs[list(numbers)]

    def measure(
        self,
        passes: PairPasses,
        pairs: Sequence[Pair],
        loaded: Loaded,
        adapter: AdapterState,
        *,
        size: int,
        emit: Emitter,
    ) -> bool:
        """Measures it with the adapter as it is.

        Args:
            passes: over pairs.
            pairs: all of them.
            loaded: the model.
            adapter: its adapter.
            size: pairs a pass.
            emit: says when to stop.

        Returns:
            False where a stop was asked for meanwhile: nothing is kept then.
        """
        started = time.monotonic()
        order = sorted(range(len(pairs)), key=lambda n: (pairs[n].longest, n))
        found: list[torch.Tensor] = []
        try:
            with loaded.evaluating():
                for start in range(0, len(order), size):
                    if emit.stopping:
                        return False
                    part = [pairs[n] for n in order[start : start + size]]
                    found.append(passes.logs(passes.lay_out(part)))
            logs = torch.empty(len(pairs), 2)
            logs[order] = torch.cat(found).float().cpu()
        finally:
            self.seconds += time.monotonic() - started
        self._logs, self.weights = logs, adapter.copied()
        return True

    def forget(self) -> None:
        """Has it measured again, with the same adapter."""
        self._logs = None

    def save(self, folder: Path) -> bool:
        """Writes it into a checkpoint; False where there is nothing to write."""
        known = {"logs": self._logs, "weights": self.weights}
        tensors = {name: tensor for name, tensor in known.items() if tensor is not None}
        if tensors:
            save_file(tensors, folder / _FILE)
        return bool(tensors)

    def load(self, folder: Path) -> None:
        """Goes back to what `save` wrote."""
        tensors = load_file(folder / _FILE)
        self._logs, self.weights = tensors.get("logs"), tensors["weights"]
