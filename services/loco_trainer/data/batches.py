"""Batches: which rows a step sees, in which order, and how they become tensors.

The same rows can be laid out in two ways: end to end (no padding, one long row whose parts do not
see each other) or padded to the longest. The loss and its gradient are the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from loco_trainer.data.rows import IGNORED, Row


@dataclass(frozen=True)
class Batch:
    """The rows of one forward pass.

    Laid end to end, `input_ids` is [1, tokens] and `starts` says where each row begins; padded, it
    is [rows, longest] and `starts` is None.
    """

    input_ids: torch.Tensor
    #: Place in its row of each token, shaped as `input_ids`.
    position_ids: torch.Tensor
    #: [answers] places in the flattened `input_ids` whose next token is an answer token.
    places: torch.Tensor
    #: [answers] those next tokens; IGNORED where a fixed size asked for a filler.
    targets: torch.Tensor
    #: [rows + 1] int32: where the rows begin, and the end of the last; None when padded.
    starts: torch.Tensor | None
    #: [rows, longest], 1 on tokens, 0 on padding; None when laid end to end.
    attention_mask: torch.Tensor | None
    #: Longest row, in tokens.
    longest: int
    #: Answer tokens of each row.
    answers: tuple[int, ...]
    #: Tokens, padding and fillers excluded.
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the copies are not waited for."""

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            places=self.places.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            starts=moved(self.starts),
            attention_mask=moved(self.attention_mask),
            longest=self.longest,
            answers=self.answers,
            tokens=self.tokens,
        )


def epoch_order(lengths: Sequence[int], *, step_rows: int, seed: int, epoch: int) -> list[int]:
    """Row numbers of one epoch: shuffled by seed and epoch, those of one step sorted by length.

    A step's rows are the same as without sorting, so its gradient is too; sorted micro-batches are
    padded less. Depends on seed and epoch only, so a resumed run sees the same order.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for start in range(0, len(shuffled), step_rows):
        order += sorted(shuffled[start : start + step_rows], key=lambda i: (lengths[i], i))
    return order


def steps_of(
    rows: Sequence[Row], *, step_rows: int, seed: int, first: int, last: int
) -> Iterator[tuple[float, list[Row]]]:
    """The rows of each optimizer step from `first` to `last` (counted from 0, `last` excluded).

    Yields:
        Passes over the data when the step is done, and the step's rows, shortest first.
    """
    lengths = [len(row.input_ids) for row in rows]
    orders = step_orders(lengths, step_rows=step_rows, seed=seed, first=first, last=last)
    for epoch, chosen in orders:
        yield epoch, [rows[i] for i in chosen]


def step_orders(
    lengths: Sequence[int], *, step_rows: int, seed: int, first: int, last: int
) -> Iterator[tuple[float, list[int]]]:
    """As `steps_of`, of whatever has these lengths: numbers instead of rows."""
    steps_per_epoch = -(-len(lengths) // step_rows)
    order: list[int] = []
    shown = -1
    for step in range(first, last):
        epoch, place = divmod(step, steps_per_epoch)
        if epoch != shown:
            order, shown = epoch_order(lengths, step_rows=step_rows, seed=seed, epoch=epoch), epoch
        chosen = order[place * step_rows : (place + 1) * step_rows]
        yield epoch + (place + 1) / steps_per_epoch, chosen


class Sizes(NamedTuple):
    """What a batch is filled up to, for shapes that stay the same."""

    tokens: int
    answers: int
    rows: int


def end_to_end(rows: Sequence[Row], *, sizes: Sizes | None = None) -> Batch:
    """The rows laid end to end, without padding.

    Args:
        rows: of one forward pass.
        sizes: what to fill up to, with tokens and rows that count nothing.
    """
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    starts = [0]
    answers = []
    for row in rows:
        offset, before = len(ids), len(places)
        ids += row.input_ids
        positions += range(len(row.input_ids))
        for place, label in enumerate(row.labels[1:]):
            if label != IGNORED:
                places.append(offset + place)
                targets.append(label)
        starts.append(len(ids))
        answers.append(len(places) - before)
    tokens = len(ids)
    if sizes:
        filler = sizes.tokens - tokens
        ids += [ids[0]] * filler
        positions += range(filler)
        unanswered = sizes.answers - len(places)
        places += [0] * unanswered
        targets += [IGNORED] * unanswered
        starts += [sizes.tokens] * (sizes.rows + 1 - len(starts))
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        places=torch.tensor(places),
        targets=torch.tensor(targets),
        starts=torch.tensor(starts, dtype=torch.int32),
        attention_mask=None,
        longest=max(len(row.input_ids) for row in rows),
        answers=tuple(answers),
        tokens=tokens,
    )


def padded(rows: Sequence[Row], *, filler: int) -> Batch:
    """The rows padded on the right to the longest.

    Args:
        rows: of one forward pass.
        filler: token ID of the padding.
    """
    longest = max(len(row.input_ids) for row in rows)
    places = [
        [number * longest + place for place, label in enumerate(row.labels[1:]) if label != IGNORED]
        for number, row in enumerate(rows)
    ]
    targets = [label for row in rows for label in row.labels[1:] if label != IGNORED]
    lengths = [len(row.input_ids) for row in rows]
    return Batch(
        input_ids=torch.tensor(
            [r.input_ids + [filler] * (longest - n) for r, n in zip(rows, lengths, strict=True)]
        ),
        position_ids=torch.arange(longest).expand(len(rows), longest),
        places=torch.tensor([place for row in places for place in row]),
        targets=torch.tensor(targets),
        starts=None,
        attention_mask=torch.tensor([[1] * n + [0] * (longest - n) for n in lengths]),
        longest=longest,
        answers=tuple(len(row) for row in places),
        tokens=sum(lengths),
    )
