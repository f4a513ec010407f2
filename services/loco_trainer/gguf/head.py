"""What a GGUF says about itself, by ggml's own reader: PyPI's takes ten seconds for a large vocabulary."""

import ctypes
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

from loco.contracts.errors import ExportFailed
from loco_trainer.gguf import ggml

_Handle = ctypes.c_void_p


@dataclass(frozen=True)
class Contents:
    """What a GGUF says about itself."""

    #: Tensor type (`Q4_K`, `F32`, …) to number of tensors.
    tensor_types: dict[str, int]
    chat_template: str | None
    architecture: str | None
    #: Rows of the token embedding, and entries of the vocabulary: equal in a sound file.
    embedding_rows: int
    vocabulary: int

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(self.tensor_types.values())


def read(path: Path) -> Contents:
    """Reads types and metadata of a GGUF, not its weights.

    Raises:
        ExportFailed: it is no whole GGUF.
    """
    library = _library()
    with _opened(path) as (head, tensors):
        kinds = (
            library.gguf_get_tensor_type(head, index)
            for index in range(library.gguf_get_n_tensors(head))
        )
        embedding = library.ggml_get_tensor(tensors, b"token_embd.weight")
        vocabulary = library.gguf_find_key(head, b"tokenizer.ggml.tokens")
        return Contents(
            tensor_types=dict(Counter(library.ggml_type_name(k).decode().upper() for k in kinds)),
            chat_template=_string(head, "tokenizer.chat_template"),
            architecture=_string(head, "general.architecture"),
            embedding_rows=library.ggml_nrows(embedding) if embedding else 0,
            vocabulary=library.gguf_get_arr_n(head, vocabulary) if vocabulary >= 0 else 0,
        )


@dataclass(frozen=True)
class Details:
    """What takes a pass over all tensors and tokens."""

    #: Name to type and shape, the shape as the GGUF has it: numbers of a row first.
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    tokens: list[str]
    context_length: int

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(shape) for _, shape in self.tensors.values())


def details(path: Path) -> Details:
    """Reads every tensor's type and shape, and every token.

    Raises:
        ExportFailed: it is no whole GGUF, or says nothing of its context.
    """
    library = _library()
    with _opened(path) as (head, tensors):
        found = {}
        for index in range(library.gguf_get_n_tensors(head)):
            name: bytes = library.gguf_get_tensor_name(head, index)
            tensor = library.ggml_get_tensor(tensors, name)
            kind: bytes = library.ggml_type_name(library.gguf_get_tensor_type(head, index))
            shape = _Tensor.from_address(tensor).shape[: library.ggml_n_dims(tensor)]
            found[name.decode()] = (kind.decode().upper(), tuple(shape))
        key = library.gguf_find_key(head, b"tokenizer.ggml.tokens")
        count = library.gguf_get_arr_n(head, key) if key >= 0 else 0
        tokens = [
            library.gguf_get_arr_str(head, key, place).decode(errors="replace")
            for place in range(count)
        ]
        architecture = _string(head, "general.architecture") or ""
        context = library.gguf_find_key(head, f"{architecture}.context_length".encode())
        if context < 0:
            raise ExportFailed(
                f"{path.name} does not say how long its context is.",
                hint="The base's config.json should have `max_position_embeddings`.",
            )
        return Details(found, tokens, library.gguf_get_val_u32(head, context))


def weights_digest(path: Path) -> str:
    """SHA-256 of what lies behind the head: the tensors, whatever names job and date in the head.

    Raises:
        ExportFailed: it is no whole GGUF.
    """
    with _opened(path) as (head, _), path.open("rb") as file:
        file.seek(_library().gguf_get_data_offset(head))
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Tensor(ctypes.Structure):
    """The first fields of `struct ggml_tensor` of ggml.h."""

    _fields_ = (("type", ctypes.c_int), ("buffer", _Handle), ("shape", ctypes.c_int64 * 4))


def _string(head: int, key: str) -> str | None:
    library = _library()
    place = library.gguf_find_key(head, key.encode())
    if place < 0:
        return None
    value: bytes = library.gguf_get_val_str(head, place)
    return value.decode()


class _Parameters(ctypes.Structure):
    """`struct gguf_init_params` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(_Handle)))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, _Handle]]:
    """The file's head, and its tensors without their data."""
    library = _library()
    tensors = _Handle()
    head = library.gguf_init_from_file(
        os.fsencode(path), _Parameters(no_alloc=True, ctx=ctypes.pointer(tensors))
    )
    if not head:
        raise ExportFailed(
            f"llama.cpp cannot read {path.name}.",
            hint="The attempt's log has llama.cpp's own words.",
        )
    try:
        yield head, tensors
    finally:
        library.ggml_free(tensors)
        library.gguf_free(head)


@cache
def _library() -> ctypes.CDLL:
    library = ggml.library()
    number, size, text = ctypes.c_int64, ctypes.c_size_t, ctypes.c_char_p
    for name, result, arguments in (
        ("gguf_init_from_file", _Handle, [text, _Parameters]),
        ("gguf_free", None, [_Handle]),
        ("gguf_find_key", number, [_Handle, text]),
        ("gguf_get_val_str", text, [_Handle, number]),
        ("gguf_get_arr_n", size, [_Handle, number]),
        ("gguf_get_arr_str", text, [_Handle, number, ctypes.c_size_t]),
        ("gguf_get_val_u32", ctypes.c_uint32, [_Handle, number]),
        ("gguf_get_n_tensors", number, [_Handle]),
        ("gguf_get_data_offset", ctypes.c_size_t, [_Handle]),
        ("gguf_get_tensor_name", text, [_Handle, number]),
        ("gguf_get_tensor_type", ctypes.c_int, [_Handle, number]),
        ("ggml_type_name", text, [ctypes.c_int]),
        ("ggml_get_tensor", _Handle, [_Handle, text]),
        ("ggml_nrows", number, [_Handle]),
        ("ggml_n_dims", ctypes.c_int, [_Handle]),
        ("ggml_free", None, [_Handle]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
