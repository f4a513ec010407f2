"""GGUF files: read the metadata, and copy a file with one key added.

PyPI's `gguf` reader takes seconds on a tokenizer of 50,000 entries; this one skips over arrays.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAGIC = b"GGUF"

_STRING, _ARRAY = 8, 9
_FIRST_KEY = 24  # after magic, version and the two counts
#: struct format of each scalar value type.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

#: Names of general.file_type (llama_ftype), as Ollama shows them.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
}  # fmt: skip

#: (name, elements, bytes) of a block, by ggml tensor type.
_BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

#: More tensors, keys or items of a list than any model has: a file that claims them is damaged.
_MOST, _MOST_ITEMS = 200_000, 4_000_000
#: Bytes of a head: a vocabulary of a million tokens has fewer.
_LONGEST_HEAD = 256 << 20
_ALIGNMENTS = tuple(1 << power for power in range(21))

#: Dimensions a tensor may have (GGML_MAX_DIMS).
_MOST_DIMENSIONS = 4


class Sink(Protocol):
    """Where bytes are written to."""

    def write(self, data: bytes, /) -> int:
        """Appends bytes."""


class NotGguf(Exception):
    """The file does not start like a GGUF."""


class BrokenGguf(Exception):
    """The file starts like a GGUF but can't be read to its end."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name, ggml type and shape."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GgufFile:
    """What the head of a GGUF says.

    Attributes:
        metadata: values by key; arrays are None (their items are the tokenizer's, and long).
        spans: (start, end) in bytes of each key with its value.
        infos_end: offset after the last tensor's description.
        data: offset of the tensor data.
        alignment: bytes that offsets of tensor data are multiples of.
    """

    path: Path
    metadata: dict[str, object]
    spans: dict[str, tuple[int, int]]
    tensors: tuple[Tensor, ...]
    infos_end: int
    data: int
    alignment: int

    @property
    def parameters(self) -> int:
        """Elements of all tensors together."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def architecture(self) -> str:
        """The kind of model: `llama`, `qwen3`."""
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA, which needs a model to stand on."""
        kinds = self.metadata.get("general.type"), self.metadata.get("adapter.type")
        return kinds == ("adapter", "lora")

    @property
    def file_type(self) -> str:
        """Quantization, as Ollama names it."""
        return FILE_TYPES.get(self.number("general.file_type"), "unknown")

    @property
    def chat_template(self) -> str:
        """The Jinja chat template; empty: there is none."""
        return str(self.metadata.get("tokenizer.chat_template", ""))

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for; 0: it doesn't say."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of context: keys and values of 16 bits in every layer, as the head tells.

        0: not known, where layers have different numbers of heads.
        """
        if self.metadata.get(f"{self.architecture}.attention.head_count_kv", 0) is None:  # a list
            return 0

        def said(key: str) -> int:
            return max(0, self.number(f"{self.architecture}.{key}"))

        heads = said("attention.head_count")
        width = said("embedding_length") // max(1, heads)
        sizes = [said(f"attention.{kind}_length") or width for kind in ("key", "value")]
        kept = said("attention.head_count_kv") or heads
        return 2 * said("block_count") * kept * sum(sizes)

    def number(self, key: str) -> int:
        """A whole number of the metadata, 0 where it is missing."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) else 0

    def arrays(self) -> dict[str, list[object]]:
        """The lists of the metadata by key: the tokenizer's, tens of thousands of items each."""
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            found = {}
            for key, value in self.metadata.items():
                if value is None:
                    cursor = _Cursor(view, self.spans[key][0])
                    cursor.string()
                    found[key] = cursor.array()
            return found

    @classmethod
    def read(cls, path: Path) -> "GgufFile":
        """Reads and checks the head of a file, and that its tensor data is all there.

        Raises:
            NotGguf: it is another kind of file.
            BrokenGguf: it is damaged or cut off.
        """
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise NotGguf(path.name)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                try:
                    return cls._parse(path, view)
                except (
                    struct.error,
                    IndexError,
                    KeyError,
                    UnicodeDecodeError,
                    OverflowError,
                ) as error:
                    raise BrokenGguf(f"invalid GGUF: {error}") from error

    @classmethod
    def _parse(cls, path: Path, view: mmap.mmap) -> "GgufFile":
        version, count, keys = struct.unpack_from("<IQQ", view, 4)
        if version not in (2, 3):
            raise BrokenGguf(f"unsupported GGUF version {version}")
        if count > _MOST or keys > _MOST:
            raise BrokenGguf("invalid GGUF: it claims too many tensors or keys")
        cursor = _Cursor(view, _FIRST_KEY)
        metadata: dict[str, object] = {}
        spans = {}
        for _ in range(keys):
            start, key = cursor.at, cursor.string()
            if (
                key in metadata
            ):  # llama.cpp refuses it too, and a copy with a key added would lose one
                raise BrokenGguf(f"invalid GGUF: key {key!r:.100} appears twice")
            metadata[key] = cursor.value()
            spans[key] = (start, cursor.at)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in _ALIGNMENTS:
            raise BrokenGguf("invalid GGUF: general.alignment must be a power of two up to 2^20")
        tensors, ends = [], [0]
        for _ in range(count):
            tensor, end = cursor.tensor()
            tensors.append(tensor)
            ends.append(end)
        data = _aligned(cursor.at, alignment)
        if data + max(ends) > len(view):
            raise BrokenGguf(
                f"invalid GGUF: tensor data ends at byte {data + max(ends)}, the file at {len(view)}"
            )
        return cls(path, metadata, spans, tuple(tensors), cursor.at, data, alignment)

    def copy_with(self, key: str, value: str, out: Sink) -> None:
        """Writes the file with a string key added, in place of the one there may be."""
        with self.path.open("rb") as source:
            head = source.read(self.infos_end)
            keys_end = max((end for _, end in self.spans.values()), default=_FIRST_KEY)
            start, end = self.spans.get(key, (keys_end, keys_end))
            count = len(self.spans) + (key not in self.spans)
            name, text = key.encode(), value.encode()
            added = struct.pack("<Q", len(name)) + name
            added += struct.pack("<IQ", _STRING, len(text)) + text
            rebuilt = head[:16] + struct.pack("<Q", count) + head[_FIRST_KEY:start]
            rebuilt += added + head[end:]
            out.write(rebuilt.ljust(_aligned(len(rebuilt), self.alignment), b"\0"))
            source.seek(self.data)
            while chunk := source.read(1 << 20):
                out.write(chunk)


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, view: mmap.mmap, at: int) -> None:
        self._view = view
        self.at = at

    def take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from("<" + form, self._view, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        end = self.at + length
        if end > min(len(self._view), _LONGEST_HEAD):
            raise IndexError("a string reaches past the end of the head or file")
        text = self._view[self.at : end].decode()
        self.at = end
        return text

    def value(self) -> object:
        (kind,) = self.take("I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])[0]
        self._skip_array()
        return None

    def array(self) -> list[object]:
        """The items of a list, its type first; text that is no UTF-8 is replaced, as in Go's JSON."""
        self.take("I")
        kind, count = self.take("IQ")
        if kind != _STRING:
            return list(self.take(f"{count}{_SCALARS[kind]}"))
        items: list[object] = []
        for _ in range(count):
            (length,) = self.take("Q")
            items.append(self._view[self.at : self.at + length].decode(errors="replace"))
            self.at += length
        return items

    def tensor(self) -> tuple[Tensor, int]:
        """A tensor, and where its data ends within the tensor data."""
        name = self.string()
        (dimensions,) = self.take("I")
        if dimensions > _MOST_DIMENSIONS:
            raise BrokenGguf(f"invalid GGUF: tensor {name!r} has {dimensions} dimensions")
        shape = self.take(f"{dimensions}Q")
        kind, offset = self.take("IQ")
        if kind not in _BLOCKS:
            raise BrokenGguf(f"invalid GGUF: tensor {name!r} is of unknown type {kind}")
        label, per_block, size = _BLOCKS[kind]
        return Tensor(name, label, shape), offset + math.prod(shape) // per_block * size

    def _skip_array(self) -> None:
        kind, count = self.take("IQ")
        if count > _MOST_ITEMS:
            raise IndexError(f"a list has {count} items")
        if kind == _STRING:
            view, at, unpack = self._view, self.at, struct.Struct("<Q").unpack_from
            for _ in range(count):
                at += 8 + unpack(view, at)[0]
            self.at = at
        else:
            self.at += count * struct.calcsize("<" + _SCALARS[kind])


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
