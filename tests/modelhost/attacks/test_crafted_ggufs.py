"""GGUFs that make llama.cpp abort the process that loads them, or take all memory there is.

Each ended the model host, and with it every answer that was on its way. llama.cpp runs in a process of the
model's own now: what ends it is a 500 for those who asked that model, and the next request starts another.
"""

import asyncio
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_gguf

from loco_modelhost.engine.pool import memory
from loco_modelhost.engine.process import Process
from loco_modelhost.engine.session import EngineError
from loco_modelhost.store.gguf_file import BrokenGguf, GgufFile, NotGguf

Crafted = tuple[dict[str, Any], dict[str, Any]]


def number(value: int) -> tuple[str, int]:
    return "uint32", value


def square(kind: type) -> np.ndarray[Any, Any]:
    return np.zeros((tiny_gguf.WIDTH, tiny_gguf.WIDTH), kind)


def row(kind: type) -> np.ndarray[Any, Any]:
    return np.ones(tiny_gguf.WIDTH, kind)


#: (keys, tensors) in place of a good file's. llama.cpp 0.3.36 aborts or crashes on each.
KILLERS: dict[str, Crafted] = {
    "no layers": ({"llama.block_count": number(0)}, {}),
    "too many layers": ({"llama.block_count": number(513)}, {}),
    "experts that none uses": ({"llama.expert_count": number(4)}, {}),
    "two billion experts": ({"llama.expert_count": number(2**31)}, {}),
    "all tokens alike": ({"tokenizer.ggml.tokens": ("array", ["t"] * 259)}, {}),
    "a negative epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": ("float32", -1.0)},
        {},
    ),
    "another tokenizer": ({"tokenizer.ggml.model": ("string", "bert")}, {}),
    "a norm of whole numbers": ({}, {"blk.0.attn_norm.weight": row(np.int32)}),
    "a bias of bytes": ({}, {"blk.0.attn_q.bias": row(np.int8)}),
    "weights of bytes": ({}, {"blk.0.attn_q.weight": square(np.int8)}),
    "weights of doubles": ({}, {"blk.0.attn_q.weight": square(np.float64)}),
    "an embedding of whole numbers": (
        {},
        {"token_embd.weight": np.zeros((259, tiny_gguf.WIDTH), np.int32)},
    ),
}

#: llama.cpp refuses these by itself, or computes something.
OTHERS: dict[str, Crafted] = {
    "a billion layers": ({"llama.block_count": number(10**9)}, {}),
    "no heads": ({"llama.attention.head_count": number(0)}, {}),
    "an odd rotation": ({"llama.rope.dimension_count": number(3)}, {}),
    "a width of nothing": ({"llama.embedding_length": number(0)}, {}),
    "tokens that are numbers": ({"tokenizer.ggml.tokens": ("array", [1, 2, 3])}, {}),
    "no tokens": ({"tokenizer.ggml.tokens": None}, {}),
    "fewer tokens than rows": ({"tokenizer.ggml.tokens": ("array", tiny_gguf.TOKENS[:9])}, {}),
    "an end that is no token": ({"tokenizer.ggml.eos_token_id": number(2**31)}, {}),
    "a missing tensor": ({}, {"output_norm.weight": None}),
}


@pytest.fixture
def create(own_host, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Creates a model of a crafted file."""
    made = []

    def make(keys: dict[str, Any], tensors: dict[str, Any], **settings: object) -> str:
        made.append("crafted")
        own_host.create("crafted", tiny_gguf.write(tmp_path / "m.gguf", keys, tensors), **settings)
        return "crafted"

    yield make
    for name in made:
        own_host.http.request("DELETE", "/api/delete", json={"model": name})


def children(host) -> set[int]:
    """Process IDs of the processes that compute."""
    return {
        child.pid
        for child in psutil.Process(host.process.pid).children()
        if "loco_modelhost.engine.child" in child.cmdline()
    }


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", KILLERS)
def test_what_kills_llama_cpp_is_an_error_of_its_own_request(name: str, create, own_host) -> None:
    answer = own_host.chat(create(*KILLERS[name]), "1 + 1?")
    assert answer.status_code == 500
    assert "llama runner process has terminated: SIG" in answer.json()["error"]
    assert own_host.process.poll() is None
    assert own_host.http.get("/api/version").status_code == 200


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_refuses_is_an_error_too(name: str, create, own_host) -> None:
    answer = own_host.chat(create(*OTHERS[name]), "1 + 1?")
    assert answer.status_code in (200, 500)
    words = ("unable to load model", "no memory for a context")
    assert answer.status_code == 200 or answer.json()["error"].startswith(words)
    assert own_host.process.poll() is None


def test_a_good_one_answers(create, own_host) -> None:
    assert own_host.chat(create({}, {}), "1 + 1?").status_code == 200


def test_one_that_aborts_on_some_texts_only(create, own_host) -> None:
    """No trial before would find it: its vocabulary lacks the bytes of what is asked later."""
    tokens = [t if t != "<0xC3>" else "other" for t in tiny_gguf.TOKENS]
    keys = {
        "tokenizer.ggml.tokens": ("array", tokens),
        "tokenizer.ggml.token_type": ("array", [2, 3, 3, *[1] * 256]),
    }
    name = create(keys, {})
    assert own_host.chat(name, "1 + 1?").status_code == 200
    answer = own_host.chat(name, "caf\xe9")
    assert answer.status_code == 500
    assert "terminated: SIG" in answer.json()["error"]
    assert own_host.chat(name, "1 + 1?").status_code == 200


def test_other_models_answer_on(create, own_host) -> None:
    body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Count to 50."}]}
    options = {"temperature": 0, "num_predict": 60}
    with own_host.http.stream("POST", "/api/chat", json={**body, "options": options}) as running:
        lines = running.iter_lines()
        next(lines)
        assert own_host.chat(create(*KILLERS["no layers"]), "1 + 1?").status_code == 500
        assert json.loads(list(lines)[-1])["done"] is True


def test_one_that_is_killed_is_started_again(own_host) -> None:
    """As the kernel does where memory is short; what was on its way ends with an error line."""
    body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Go on."}]}
    endless = {"format": {"type": "string", "minLength": 5000}, "options": {"num_ctx": 8192}}
    before = children(own_host)
    with own_host.http.stream("POST", "/api/chat", json={**body, **endless}) as running:
        lines = running.iter_lines()
        next(lines)
        for pid in children(own_host):
            os.kill(pid, signal.SIGKILL)
        assert "terminated: SIGKILL" in json.loads(list(lines)[-1])["error"]
    assert own_host.chat("smollm2:135m", "1 + 1?").status_code == 200
    assert children(own_host) - before


def test_no_process_outlives_the_host(start_host, tmp_path: Path) -> None:
    host = start_host(tmp_path / "models")
    host.create("tiny", tiny_gguf.write(tmp_path / "m.gguf"))
    assert host.chat("tiny", "1 + 1?").status_code == 200
    computing = children(host)
    assert computing
    host.process.kill()
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in computing))


def test_a_context_larger_than_the_machine_is_an_error(create, own_host) -> None:
    name = create({"llama.context_length": number(2**31)}, {})
    for tokens in (2**31, 2**30):
        answer = own_host.chat(name, "1 + 1?", options={"num_ctx": tokens})
        assert answer.status_code == 500
        assert f"no memory for a context of {tokens}" in answer.json()["error"]
    assert own_host.chat(name, "1 + 1?").status_code == 200


def test_memory_is_bounded_whatever_the_head_says(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "m.gguf", {"llama.block_count": number(2**32 - 1)})
    head = GgufFile.read(tmp_path / "m.gguf")
    assert memory(head, 10**15, 8) < psutil.virtual_memory().total
    tiny_gguf.write(tmp_path / "m.gguf")
    # keys and values of 2 heads of 16 numbers of 2 bytes in 1 layer, and 64 bytes more, for 128 tokens
    wanted = (4 << 30) + 300 + 3 * 128 * (128 + 64)
    assert memory(GgufFile.read(tmp_path / "m.gguf"), 100, 3) <= wanted
    assert GgufFile.read(tmp_path / "m.gguf").token_bytes == 128


def test_the_limit_is_that_of_the_process(create, own_host) -> None:
    before = children(own_host)
    own_host.chat(create({}, {}), "1 + 1?")
    (started,) = children(own_host) - before
    soft, hard = psutil.Process(started).rlimit(psutil.RLIMIT_DATA)
    assert 1 << 28 < soft == hard < psutil.virtual_memory().total


def test_a_process_takes_no_more_than_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path, {"llama.context_length": number(2**31)})

    async def ask() -> None:
        process = Process(path, slots=1, threads=1, memory=1 << 30)
        try:
            with pytest.raises(EngineError, match="no memory for a context of 4194304 tokens"):
                await anext(process.ask("ready", slot=0, context_length=1 << 22))
            assert "end" in await anext(process.ask("ready", slot=0, context_length=64))
        finally:
            await process.ended()

    asyncio.run(ask())


def test_one_that_takes_for_ever_is_given_up(
    weights_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))

    async def ask() -> None:
        process = Process(weights_path, slots=1, threads=1, memory=1 << 33, load_seconds=0.3)
        try:
            await anext(process.ask("ready", slot=0, context_length=64))
        finally:
            await process.ended()

    with pytest.raises(EngineError, match="takes more than"):
        asyncio.run(ask())


@pytest.mark.parametrize("context", [[10**9], [-1], ["x"], [True], "text", {"a": 1}])
def test_a_context_of_no_tokens_is_refused(context: Any, own_host) -> None:
    body = {"model": "smollm2:135m", "prompt": "Hi", "context": context, "stream": False}
    assert own_host.post("/api/generate", body).status_code == 400


HEADS = {
    "a string of 2^60": struct.pack("<Q", 2**60) + b"x",
    "an array of 2^60": struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**60),
    "an array of -1": struct.pack("<Q", 1) + b"k" + struct.pack("<IIq", 9, 4, -1),
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


@pytest.mark.parametrize("alignment", [0, 3, 2**31])
def test_an_alignment_is_a_power_of_two(alignment: int, tmp_path: Path) -> None:
    good = tiny_gguf.write(tmp_path / "m.gguf", {"general.alignment": number(32)})
    at = good.index(b"general.alignment") + len(b"general.alignment") + 4
    (tmp_path / "m.gguf").write_bytes(good[:at] + struct.pack("<I", alignment) + good[at + 4 :])
    with pytest.raises(BrokenGguf, match="alignment"):
        GgufFile.read(tmp_path / "m.gguf")


def test_a_file_without_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    good = tiny_gguf.write(path)
    for size in (*range(0, len(good), 997), len(good) - 1000):
        path.write_bytes(good[:size])
        with pytest.raises((BrokenGguf, NotGguf)):
            GgufFile.read(path)
