"""Contexts of loaded models: what one request asks for costs another nothing."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_gguf

from loco_modelhost.engine import pool as pools
from loco_modelhost.engine.pool import Pool
from loco_modelhost.engine.session import EngineError
from loco_modelhost.store.gguf_file import GgufFile


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """What a pool needs of a model."""
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path)
    return SimpleNamespace(
        path=path,
        adapter=None,
        loads=(path, None),
        loaded_bytes=path.stat().st_size,
        gguf=GgufFile.read(path),
    )


def test_a_context_that_is_there_needs_no_memory_again(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is missing from what is free: from the second question on it was refused."""

    async def ask() -> None:
        pool = Pool()
        try:
            async with pool.use(model, 4096, 60) as slot:
                pid = slot.process.pid
            monkeypatch.setattr(pools, "_available", lambda: 0)
            async with pool.use(model, 4096, 60) as slot:
                assert slot.process.pid == pid
            with pytest.raises(EngineError, match="no memory for a context of 8192 tokens"):
                async with pool.use(model, 8192, 60):
                    pass
            async with pool.use(model, 2048, 60) as slot:
                assert (slot.process.pid, slot.context_length) == (pid, 4096)
        finally:
            await pool.close()

    asyncio.run(ask())


def test_a_context_too_large_costs_the_answer_of_its_own_request(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closed the context of whoever was answered in it, and the whole process was put out."""
    monkeypatch.setattr(pools, "memory", lambda *_: 1 << 30)
    monkeypatch.setattr(pools, "_available", lambda: 1 << 40)

    async def ask() -> None:
        pool = Pool()
        try:
            async with pool.use(model, 128, 60) as slot:
                pid = slot.process.pid
                with pytest.raises(EngineError, match="no memory for a context of 4194304 tokens"):
                    async with pool.use(model, 1 << 22, 60):
                        pass
                assert (await slot.tokenize("1 + 1")).count > 0
                assert slot.context_length == 128
            async with pool.use(model, 128, 60) as slot:
                assert slot.process.pid == pid
        finally:
            await pool.close()

    asyncio.run(ask())


def test_heads_that_differ_from_layer_to_layer_are_no_reason_to_refuse(tmp_path: Path) -> None:
    """A list of them was taken for as many as of queries: ten times what LFM2 takes."""
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path)
    assert GgufFile.read(path).token_bytes == 128
    head = GgufFile.read(path)
    listed = {**head.metadata, f"{head.architecture}.attention.head_count_kv": None}
    object.__setattr__(head, "metadata", listed)
    assert head.token_bytes == 0
