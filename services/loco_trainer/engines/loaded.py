"""What an engine gives: a model with an adapter, and its loss on a batch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from loco_trainer.data.batches import Batch
    from loco_trainer.data.rows import Row


@dataclass(frozen=True)
class Loaded:
    """A base model with a fresh adapter, ready to train."""

    #: PEFT's model.
    model: Any
    #: Type the forward pass computes in, for people: `bfloat16`, `4-bit, computing in bfloat16`.
    dtype: str
    #: Lays the rows of one forward pass out as tensors.
    lay_out: "Callable[[list[Row]], Batch]"
    #: Negative log-likelihood of each answer token of a batch, [answers] in nats.
    losses: "Callable[[Batch], torch.Tensor]"
    #: Has activations computed again in the backward pass from now on, to save memory.
    recompute: Callable[[], None]
    #: Type autocast computes matrix products in; none: everything is in its type already.
    autocast: "torch.dtype | None" = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Has all dropout pass everything on; afterwards every layer is as it was before."""
        training = self.model.training
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)
            for module, mode in modes:
                module.training = mode

    def computing(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.autocast is None:
            return nullcontext()
        import torch

        context: AbstractContextManager[Any] = torch.autocast(
            "cuda" if torch.cuda.is_available() else "cpu", dtype=self.autocast
        )
        return context
