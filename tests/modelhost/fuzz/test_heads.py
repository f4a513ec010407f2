"""Any bytes as a GGUF: a head, or one of the two errors of its reader; and a copy says the same."""

import io
import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loco_modelhost.store.gguf_file import BrokenGguf, GgufFile, NotGguf

_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
COUNT = st.integers(0, 3) | st.sampled_from([2**31, 2**32, 2**60, 2**63, 2**64 - 1])
KIND = st.integers(0, 13) | st.sampled_from([77, 2**31, 2**32 - 1])
KEYS = ["general.alignment", "general.architecture", "tokenizer.chat_template", "general.file_type",
        "llama.context_length", "tokenizer.ggml.tokens", "k"]  # fmt: skip


def _string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


STRING = st.builds(
    _string, st.sampled_from(KEYS).map(str.encode) | st.binary(max_size=8)
) | st.builds(_string, st.binary(max_size=4), COUNT)
SCALAR = st.sampled_from(sorted(_SIZES)).flatmap(
    lambda kind: st.binary(min_size=struct.calcsize(_SIZES[kind]), max_size=8).map(
        lambda b: struct.pack("<I", kind) + b[: struct.calcsize(_SIZES[kind])]
    )
)
#: An alignment that is none, and sound values.
NUMBER = st.sampled_from([0, 1, 3, 32, 2**31]).map(lambda n: struct.pack("<II", 4, n))
TEXT = STRING.map(lambda s: struct.pack("<I", 8) + s)
ARRAY = st.builds(
    lambda kind, count, items: struct.pack("<IIQ", 9, kind, count) + items,
    KIND,
    COUNT,
    st.lists(STRING, max_size=3).map(b"".join) | st.binary(max_size=24),
)
SOUND_ARRAY = st.lists(st.binary(max_size=4), max_size=3).map(
    lambda items: struct.pack("<IIQ", 9, 8, len(items)) + b"".join(map(_string, items))
)
VALUE = SCALAR | NUMBER | TEXT | ARRAY | SOUND_ARRAY | KIND.map(lambda k: struct.pack("<I", k))
ENTRY = st.builds(bytes.__add__, STRING, VALUE)
TENSOR = st.builds(
    lambda name, shape, dimensions, kind, offset: (
        name
        + struct.pack("<I", len(shape) if dimensions is None else dimensions)
        + b"".join(struct.pack("<Q", n) for n in shape)
        + struct.pack("<IQ", kind, offset)
    ),
    STRING,
    st.lists(COUNT, max_size=4),
    st.none() | st.sampled_from([5, 2**32 - 1]),
    KIND,
    COUNT,
)
FILE = st.builds(
    lambda version, counts, entries, tensors, rest: (
        b"GGUF"
        + struct.pack("<IQQ", version, counts[0] + len(tensors), counts[1] + len(entries))
        + b"".join(entries)
        + b"".join(tensors)
        + rest
    ),
    st.sampled_from([3, 2, 1, 2**31]) | st.just(3),
    st.just((0, 0)) | st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 10**7, 2**63])),
    st.lists(ENTRY, max_size=4),
    st.lists(TENSOR, max_size=2),
    st.binary(max_size=64) | st.just(bytes(256)),
)


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Callable[[bytes], GgufFile | None]:
    """Reads bytes as a GGUF; None: refused by an error of the reader."""
    path = tmp_path_factory.mktemp("heads") / "head.gguf"

    def from_bytes(content: bytes) -> GgufFile | None:
        path.write_bytes(content)
        try:
            return GgufFile.read(path)
        except (NotGguf, BrokenGguf):
            return None

    return from_bytes


def looked_at(head: GgufFile, read: Callable[[bytes], GgufFile | None]) -> None:
    """Asks a head everything it can be asked."""
    assert isinstance(head.parameters, int)
    assert isinstance(head.context_length, int)
    for text in (head.architecture, head.file_type, head.chat_template):
        assert isinstance(text, str)
    size = head.path.stat().st_size
    assert head.infos_end <= head.data <= size
    assert all(len(items) <= size for items in head.arrays().values())
    metadata, tensors, out = head.metadata, head.tensors, io.BytesIO()
    head.copy_with("locollm.note", "a note", out)
    copy = read(out.getvalue())
    assert copy is not None
    assert copy.metadata == pytest.approx(metadata | {"locollm.note": "a note"}, nan_ok=True)
    assert copy.tensors == tensors


@given(content=FILE | st.binary(max_size=100) | st.binary(max_size=60).map(b"GGUF".__add__))
@example(content=b"")
@example(content=b"GGUF")
@example(
    content=b"GGUF"
    + struct.pack("<IQQ", 3, 0, 2)
    + 2 * (_string(b"k") + struct.pack("<II", 4, 1))
    + bytes(64)
)
def test_any_bytes_are_a_head_or_refused(read, content):
    head = read(content)
    if head is not None:
        looked_at(head, read)


#: A whole file: a number, a text, a list of tokens, one tensor of 32 numbers behind 32 bytes of alignment.
SOUND = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 1, 3)
    + (_string(b"general.alignment") + struct.pack("<II", 4, 32))
    + (_string(b"general.architecture") + struct.pack("<I", 8) + _string(b"llama"))
    + (_string(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2))
    + (_string(b"a") + _string(b"bc"))
    + (_string(b"token_embd.weight") + struct.pack("<IQIQ", 1, 32, 0, 0))
    + bytes(192)
)


@given(
    changes=st.lists(
        st.tuples(st.integers(4, len(SOUND) - 193), st.binary(min_size=1, max_size=8)), max_size=3
    ),
    cut=st.integers(0, 64) | st.integers(0, len(SOUND)),
)
@example(changes=[], cut=0)
def test_a_whole_file_with_changed_bytes(read, changes, cut):
    content = bytearray(SOUND)
    for at, new in changes:
        content[at : at + len(new)] = new
    head = read(bytes(content[: len(content) - cut]))
    if head is not None:
        looked_at(head, read)
    elif not changes:
        assert cut > 0, "a whole file is read"
