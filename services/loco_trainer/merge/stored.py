"""The tensors of a base model on disk, known from the safetensors headers and read one at a time."""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from loco.contracts.errors import ExportFailed
from loco.recipes.base_files import missing_weights, tensor_entries

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_MOST_READ = 2**30  # Linux reads at most 2 GiB a call
_FETCH = "The base model's download is incomplete. Delete it and download it again."


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    name: str
    dtype: str  # as safetensors writes it: BF16, F16, …
    shape: tuple[int, ...]
    file: Path
    offset: int  # of its first byte in the file
    size: int  # in bytes

    @property
    def elements(self) -> int:
        """Its numbers."""
        return prod(self.shape)

    def read(self) -> torch.Tensor:
        """Its values in memory of its own: mapped pages would count as the program's RAM.

        Raises:
            ExportFailed: the file is shorter than its header says, or of a type nobody can merge.
        """
        data = torch.empty(self.size, dtype=torch.uint8)
        view = memoryview(data.numpy())
        with self.file.open("rb", buffering=0) as file:
            done = 0
            while done < self.size:
                part = view[done : done + _MOST_READ]
                got = os.preadv(file.fileno(), [part], self.offset + done)
                if got == 0:
                    raise ExportFailed(
                        f"{self.file.name} ends before the data of {self.name}.",
                        hint=_FETCH,
                    )
                done += got
        return data.view(TYPES[self.dtype]).view(self.shape)


def index(base: Path) -> dict[str, Stored]:
    """The tensors of a Hugging Face folder by name, from the headers alone.

    Raises:
        ExportFailed: a file of weights is missing, or a header is damaged.
    """
    if missing := missing_weights(base):
        raise ExportFailed(f"The base has no {', '.join(missing)}.", hint=_FETCH)
    found: dict[str, Stored] = {}
    for shard in sorted(base.glob("*.safetensors")):
        try:
            found |= {
                e.name: Stored(e.name, e.dtype, e.shape, shard, e.offset, e.size)
                for e in tensor_entries(shard)
            }
        except ValueError as error:
            raise ExportFailed(
                f"{shard.name} of the base is damaged: its header cannot be read.", hint=_FETCH
            ) from error
    return found
