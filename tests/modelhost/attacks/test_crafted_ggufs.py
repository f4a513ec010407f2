"""GGUFs that make llama.cpp abort the process that loads them.

Each ended the model host, and with it every answer that was on its way. A child loads a file first now;
what ends that is an error of the request, and the host lives.
"""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loco_modelhost.engine import trial
from loco_modelhost.engine.engine import EngineError, Weights
from loco_modelhost.store.gguf_file import BrokenGguf, GgufFile, NotGguf

#: Key of the head and the value in its place, a number of 32 bits.
NUMBERS = {
    "no heads": ("llama.attention.head_count", 0),
    "more heads than width": ("llama.attention.head_count", 100_000),
    "no key heads": ("llama.attention.head_count_kv", 0),
    "an odd rotation": ("llama.rope.dimension_count", 3),
    "a huge rotation": ("llama.rope.dimension_count", 2**31),
    "no layers": ("llama.block_count", 0),
    "a billion layers": ("llama.block_count", 10**9),
    "no width": ("llama.embedding_length", 0),
    "another width": ("llama.embedding_length", 7),
    "a token that is none": ("tokenizer.ggml.eos_token_id", 2**31),
    "a beginning that is none": ("tokenizer.ggml.bos_token_id", 2**32 - 2),
}


@pytest.fixture(scope="module")
def head(weights_path: Path) -> GgufFile:
    return GgufFile.read(weights_path)


@pytest.fixture
def with_number(head: GgufFile, weights: bytes) -> Callable[[str, int], bytes]:
    """The weights with one number of the head changed."""

    def make(key: str, value: int) -> bytes:
        _, end = head.spans[key]
        return weights[: end - 4] + struct.pack("<I", value) + weights[end:]

    return make


@pytest.mark.parametrize("name", NUMBERS)
def test_a_host_outlives_it(
    name: str, with_number: Callable[[str, int], bytes], own_host, record_property
) -> None:
    own_host.create(f"crafted-{name.replace(' ', '-')}", with_number(*NUMBERS[name]))
    answer = own_host.chat(f"crafted-{name.replace(' ', '-')}", "1 + 1?")
    record_property("answer", answer.text)
    assert answer.status_code in (200, 500)
    if answer.status_code == 500:
        assert answer.json()["error"]
    assert own_host.process.poll() is None
    assert own_host.chat("smollm2:135m", "1 + 1?").status_code == 200
    own_host.http.request(
        "DELETE", "/api/delete", json={"model": f"crafted-{name.replace(' ', '-')}"}
    )


def test_what_aborts_a_child_is_an_error(
    with_number: Callable[[str, int], bytes], tmp_path: Path
) -> None:
    """At least one of them does abort, or the trial would be for nothing."""
    ends = {}
    for name, change in NUMBERS.items():
        path = tmp_path / "crafted.gguf"
        path.write_bytes(with_number(*change))
        ends[name] = trial.refusal(path)
    killed = [name for name, why in ends.items() if why and "ended with -" in why]
    assert killed, ends
    path.write_bytes(with_number(*NUMBERS[killed[0]]))
    with pytest.raises(EngineError, match="ended with -"):
        Weights(path).hold()


def test_one_that_takes_for_ever_is_given_up(
    weights_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(trial, "_SECONDS_A_GB", 0)
    assert "more than" in str(trial.refusal(weights_path, seconds=0.3))


HEADS = {
    "a string of 2^60": struct.pack("<Q", 2**60) + b"x",
    "an array of 2^60": struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**60),
    "2^60 strings": struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**60),
    "an array of arrays": struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
    "an unknown type": struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77),
    "no UTF-8": struct.pack("<Q", 1) + b"\xff" + struct.pack("<I", 0),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "head.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + HEADS[name])
    with pytest.raises(BrokenGguf):
        GgufFile.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGUF" + b"\xff" * 20,
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    ],
)
def test_counts_are_bounded_before_anything_is_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "head.gguf"
    path.write_bytes(content)
    with pytest.raises((BrokenGguf, NotGguf)):
        GgufFile.read(path)


def test_a_tensor_beyond_the_file_is_refused(
    head: GgufFile, weights: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(weights[: head.data + 1000])
    with pytest.raises(BrokenGguf, match="tensor data ends at"):
        GgufFile.read(path)
