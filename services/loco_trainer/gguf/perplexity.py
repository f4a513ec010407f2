"""What quantizing cost: the exported GGUF against the trained model on rows kept out of training.

Both are measured on the same answer tokens, so the change of perplexity is that of merging, rounding
and quantizing, not of another text.
"""

from collections.abc import Sequence
from math import exp
from pathlib import Path

from loco.contracts.results import Perplexity, ValidationRow
from loco.contracts.specs import Inputs
from loco.contracts.stages import Stage
from loco.stage.program import Emitter
from loco_trainer.data import rows
from loco_trainer.data.template import Template
from loco_trainer.gguf.check import GgufModel

_VALIDATION = "prepare/validation_data.jsonl"
#: Answer tokens: enough for a change of 1 % to be seen, as both models see the same ones.
_ANSWER_TOKENS = 1024
#: Bytes of weights times tokens put through them: 8 s on 16 cores for a 4B model in 4 bits, which is
#: then measured on some 600 tokens; a 135M model never comes near.
_WORK = 1.5e12


class Measured:
    """The validation rows export repeats, with the losses training measured on them."""

    def __init__(self, pairs: Sequence[tuple[rows.Row, ValidationRow]]) -> None:
        self._pairs = pairs

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 where there is none."""
        return max((len(row.input_ids) for row, _ in self._pairs), default=0)

    def against(self, model: GgufModel, emit: Emitter) -> Perplexity | None:
        """Measures the GGUF; None without rows.

        Raises:
            Stopped: a stop was asked for.
        """
        if not self._pairs:
            return None
        trained = exported = 0.0
        tokens = 0
        for row, before in self._pairs:
            emit.check_stop()
            found = model.log_probabilities(row)
            exported -= float(found.double().sum())
            trained += before.loss * before.tokens
            tokens += len(found)
        return Perplexity(
            rows=len(self._pairs),
            tokens=tokens,
            trained=exp(trained / tokens),
            exported=exp(exported / tokens),
            change=exp((exported - trained) / tokens) - 1,
        )


def choose(inputs: Inputs, template: Template, *, size: int, emit: Emitter) -> Measured:
    """The first rows of validation_data.jsonl that training measured, as many as take seconds.

    Args:
        inputs: has the file and train's result, or not.
        template: training's.
        size: of the GGUF, in bytes.
        emit: told when the rows are not those of training.
    """
    path: Path | None = inputs.files.get(_VALIDATION)
    known = [
        ValidationRow.model_validate(row)
        for row in inputs.results.get(Stage.TRAIN, {}).get("validation", ())
    ]
    if path is None or not known:
        return Measured(())
    encoded = rows.read(path, template, max_length=2**31).rows
    # training left out those longer than its longest length, which are the longest
    lengths = sorted(len(row.input_ids) for row in encoded)
    if len(known) <= len(encoded):
        encoded = [row for row in encoded if len(row.input_ids) <= lengths[len(known) - 1]]
    counts = [sum(label != rows.IGNORED for label in row.labels[1:]) for row in encoded]
    if counts != [row.tokens for row in known]:
        emit.log("Perplexity not measured: the validation rows differ from those of training.")
        return Measured(())
    chosen: list[tuple[rows.Row, ValidationRow]] = []
    tokens = answers = 0
    for row, before in zip(encoded, known, strict=True):
        tokens += len(row.input_ids)
        answers += before.tokens
        if chosen and (answers > _ANSWER_TOKENS or tokens * size > _WORK):
            break
        chosen.append((row, before))
    return Measured(chosen)
