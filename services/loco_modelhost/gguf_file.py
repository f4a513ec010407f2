"""GGUF files: read the metadata, and copy a file with one key added.

PyPI's `gguf` reader takes seconds on a tokenizer of 50,000 entries; this one skips over arrays.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAGIC = b"GGUF"

_STRING, _ARRAY = 8, 9
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

#: (elements, bytes) of a block, by ggml tensor type.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

#: More tensors or keys than any model has: a file that claims them is damaged.
_MOST = 10_000_000


class Sink(Protocol):
    """Where bytes are written to."""

    def write(self, data: bytes, /) -> int:
        """Appends bytes."""


class NotGguf(Exception):
    """The file does not start like a GGUF."""


class BrokenGguf(Exception):
    """The file starts like a GGUF but can't be read to its end."""


@dataclass(frozen=True)
class GgufFile:
    """What the head of a GGUF says.

    Attributes:
        metadata: values by key; arrays are None (their items are the tokenizer's, and long).
        parameters: elements of all tensors together.
        keys_end: offset after the last key.
        data: offset of the tensor data.
        alignment: bytes that offsets of tensor data are multiples of.
    """

    path: Path
    metadata: dict[str, object]
    tensors: int
    parameters: int
    keys_end: int
    infos_end: int
    data: int
    alignment: int

    @property
    def architecture(self) -> str:
        """The kind of model: `llama`, `qwen3`."""
        return str(self.metadata.get("general.architecture", "unknown"))

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

    def number(self, key: str) -> int:
        """A whole number of the metadata, 0 where it is missing."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) else 0

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
                except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
                    raise BrokenGguf(f"invalid GGUF: {error}") from error

    @classmethod
    def _parse(cls, path: Path, view: mmap.mmap) -> "GgufFile":
        version, tensors, keys = struct.unpack_from("<IQQ", view, 4)
        if version not in (2, 3):
            raise BrokenGguf(f"unsupported GGUF version {version}")
        if tensors > _MOST or keys > _MOST:
            raise BrokenGguf("invalid GGUF: it claims too many tensors or keys")
        cursor = _Cursor(view, 24)
        metadata = {cursor.string(): cursor.value() for _ in range(keys)}
        keys_end = cursor.at
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not alignment:
            raise BrokenGguf("invalid GGUF: general.alignment must be a number above 0")
        parameters = end = 0
        for _ in range(tensors):
            cursor.string()
            shape = cursor.take(f"{cursor.take('I')[0]}Q")
            kind, offset = cursor.take("IQ")
            elements = math.prod(shape)
            per_block, size = _BLOCKS[kind]
            end = max(end, offset + elements // per_block * size)
            parameters += elements
        data = _aligned(cursor.at, alignment)
        if data + end > len(view):
            raise BrokenGguf(
                f"invalid GGUF: tensor data ends at byte {data + end}, the file at {len(view)}"
            )
        return cls(
            path, metadata, tensors, parameters, keys_end, cursor.at, data, alignment
        )  # fmt: skip

    def copy_with(self, key: str, value: str, out: Sink) -> None:
        """Writes the file with a string key added."""
        with self.path.open("rb") as source:
            head = source.read(self.infos_end)
            count = struct.unpack_from("<Q", head, 16)[0]
            name, text = key.encode(), value.encode()
            added = struct.pack("<Q", len(name)) + name
            added += struct.pack("<IQ", _STRING, len(text)) + text
            rebuilt = b"".join(
                (head[:16], struct.pack("<Q", count + 1), head[24 : self.keys_end], added,
                 head[self.keys_end :])
            )  # fmt: skip
            out.write(rebuilt.ljust(_aligned(len(rebuilt), self.alignment), b"\0"))
            source.seek(self.data)
            shutil.copyfileobj(source, out, 1 << 20)


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
        if end > len(self._view):
            raise IndexError("a string reaches past the end of the file")
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

    def _skip_array(self) -> None:
        kind, count = self.take("IQ")
        if kind == _ARRAY:
            for _ in range(count):
                self._skip_array()
        elif kind == _STRING:
            view, at, unpack = self._view, self.at, struct.Struct("<Q").unpack_from
            for _ in range(count):
                at += 8 + unpack(view, at)[0]
            self.at = at
        else:
            self.at += count * struct.calcsize("<" + _SCALARS[kind])


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
