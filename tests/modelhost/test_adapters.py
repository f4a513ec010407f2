"""A LoRA on a model that is there: created, shown and answered as Ollama does (0.30 and newer)."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf

#: What llama.cpp cannot put on the tiny model.
CRAFTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no B": ({}, {"blk.0.attn_v.weight.lora_b": None}),
    "a layer that is not there": (
        {},
        {
            "blk.7.attn_v.weight.lora_a": np.ones((2, tiny_gguf.WIDTH)),
            "blk.7.attn_v.weight.lora_b": np.ones((tiny_gguf.WIDTH, 2)),
        },
    ),
    "a layer of another width": ({}, {"blk.0.attn_v.weight.lora_a": np.ones((2, 8))}),
    "another rank in A": ({}, {"blk.0.attn_v.weight.lora_a": np.ones((3, tiny_gguf.WIDTH))}),
    "a weight that is no part of one": ({}, {"blk.0.attn_v.weight": np.ones((2, 2))}),
    "whole numbers": (
        {},
        {"blk.0.attn_v.weight.lora_a": np.ones((2, tiny_gguf.WIDTH), np.int32)},
    ),
    "no numbers": ({"adapter.lora.alpha": ("float32", float("nan"))}, {}),
    "no alpha": ({"adapter.lora.alpha": None}, {}),
    "alpha in words": ({"adapter.lora.alpha": ("string", "four")}, {}),
    "no tensors": ({}, dict.fromkeys([f"blk.0.{n}.weight.lora_{p}" for n in ("attn_v", "ffn_down") for p in "ab"])),
}  # fmt: skip


@pytest.fixture
def base(server, tmp_path: Path) -> Iterator[str]:
    """A tiny model, deleted with all that was made on it."""
    name = f"locollm-adapters-{uuid.uuid4().hex[:8]}"
    server.create(
        f"{name}:base", tiny_gguf.write(tmp_path / "base.gguf"), parameters={"num_ctx": 64}
    )
    yield name
    for there in [n for n in server.names() if n.startswith(f"{name}:")]:
        server.http.request("DELETE", "/api/delete", json={"model": there})


@pytest.fixture
def put(server, base: str) -> Callable[..., Any]:
    """Creates a model of the base and an adapter, and returns the answer."""

    def create(tag: str, content: bytes, **settings: object) -> Any:
        adapters = {"adapter.gguf": server.upload(content)}
        body = {"model": f"{base}:{tag}", "from": f"{base}:base", "adapters": adapters}
        return server.post("/api/create", {**body, "stream": False, **settings})

    return create


def said(server, model: str) -> str:
    answer = server.post(
        "/api/generate",
        {
            "model": model,
            "prompt": "abc",
            "raw": True,
            "stream": False,
            "options": {"temperature": 0, "num_predict": 8},
        },
    )
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["response"]
    return text


def test_it_answers_otherwise_than_its_base_and_they_share_its_weights(
    server, base: str, put, tmp_path: Path
) -> None:
    assert put("one", tiny_gguf.write_lora(tmp_path / "1.gguf")).json() == {"status": "success"}
    assert put("two", tiny_gguf.write_lora(tmp_path / "2.gguf", seed=2)).status_code == 200
    nothing = {"blk.0.attn_v.weight.lora_b": np.zeros((tiny_gguf.WIDTH, 2)),
               "blk.0.ffn_down.weight.lora_b": np.zeros((tiny_gguf.WIDTH, 2))}  # fmt: skip
    assert put("none", tiny_gguf.write_lora(tmp_path / "0.gguf", None, nothing)).status_code == 200
    plain = said(server, f"{base}:base")
    answers = {tag: said(server, f"{base}:{tag}") for tag in ("one", "two", "none", "base", "one")}
    assert answers["none"] == answers["base"] == plain
    assert len(set(answers.values())) == 3
    weights = {
        line
        for tag in ("base", "one", "two")
        for line in show(server, f"{base}:{tag}")["modelfile"].splitlines()
        if line.startswith("FROM ")
    }
    assert len(weights) == 1


def show(server, model: str) -> dict[str, Any]:
    shown: dict[str, Any] = server.post("/api/show", {"model": model}).json()
    return shown


def test_it_is_shown_as_its_base_with_an_adapter(server, base: str, put, tmp_path: Path) -> None:
    content = tiny_gguf.write_lora(tmp_path / "1.gguf")
    put("one", content, system="Short.", parameters={"temperature": 0})
    one, plain = show(server, f"{base}:one"), show(server, f"{base}:base")
    (line,) = (part for part in one["modelfile"].splitlines() if part.startswith("ADAPTER "))
    assert line.endswith(server.upload(content).replace(":", "-"))  # as it was uploaded
    assert "ADAPTER" not in plain["modelfile"]
    assert one["details"]["parent_model"] == f"{base}:base"
    assert one["model_info"] == plain["model_info"]
    assert (one["system"], "system" in plain) == ("Short.", False)
    sizes = {m["name"]: m["size"] for m in server.http.get("/api/tags").json()["models"]}
    grown = sizes[f"{base}:one"] - sizes[f"{base}:base"]
    assert len(content) <= grown < len(content) + 2000


def test_a_stream_says_how_it_comes_about(server, base: str, tmp_path: Path) -> None:
    digest = server.upload(tiny_gguf.write_lora(tmp_path / "1.gguf"))
    body = {"model": f"{base}:one", "from": f"{base}:base", "adapters": {"x.gguf": digest}}
    lines = [line["status"] for line in server.lines("/api/create", body)]
    assert lines[0] == "parsing GGUF"
    assert f"using existing layer {digest}" in lines
    assert lines[-2:] == ["writing manifest", "success"]


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({}, "unknown type"),
        ({"a.gguf": ""}, "invalid digest format"),
        ({"a.gguf": "sha256:" + "0" * 64, "b.gguf": "sha256:" + "1" * 64}, "only one adapter is currently supported"),
        ({"a.gguf": "text"}, "supplied file was not in GGUF format"),
        ({"a.txt": "text"}, "unknown type"),
        ({"a.gguf": "sha256:" + "0" * 64}, "no such file or directory"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_is_refused_in_ollamas_words(
    server, base: str, adapters: dict[str, str], message: str
) -> None:
    text = server.upload(b"this is text and no GGUF, whatever it is called")
    named = {name: text if digest == "text" else digest for name, digest in adapters.items()}
    body = {"model": f"{base}:x", "from": f"{base}:base", "adapters": named, "stream": False}
    answer = server.post("/api/create", body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text
    assert f"{base}:x" not in server.names()


def test_what_ollama_stores_and_cannot_load_is_refused_here(
    own_host, base: str, put, tmp_path: Path
) -> None:
    model, lora = tiny_gguf.write(tmp_path / "m.gguf"), tiny_gguf.write_lora(tmp_path / "1.gguf")
    answer = put("x", model)
    assert (answer.status_code, "is not a GGUF LoRA" in answer.text) == (400, True)
    files = {"model": f"{base}:x", "files": {"m.gguf": own_host.upload(lora)}, "stream": False}
    answer = own_host.post("/api/create", files)
    assert (answer.status_code, "is a LoRA adapter" in answer.text) == (400, True)
    put("one", lora)
    answer = put("x", tiny_gguf.write_lora(tmp_path / "2.gguf", seed=2), **{"from": f"{base}:one"})
    assert (answer.status_code, "only one adapter" in answer.text) == (400, True)
    assert own_host.names() >= {f"{base}:base", f"{base}:one"}
    assert f"{base}:x" not in own_host.names()


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_one_costs_its_own_answers_alone(
    name: str, own_host, base: str, put, tmp_path: Path
) -> None:
    assert put("bad", tiny_gguf.write_lora(tmp_path / "a.gguf", *CRAFTED[name])).status_code == 200
    body = {"model": f"{base}:bad", "prompt": "abc", "raw": True, "stream": False}
    answer = own_host.post("/api/generate", {**body, "options": {"num_predict": 2}})
    words = ("unable to load adapter", "llama runner process has terminated: SIG")
    assert answer.status_code in (200, 500)
    assert answer.status_code == 200 or answer.json()["error"].startswith(words), answer.text
    assert own_host.process.poll() is None
    assert said(own_host, f"{base}:base")


def test_one_of_another_architecture_does_not_load(
    own_host, base: str, put, tmp_path: Path
) -> None:
    content = tiny_gguf.write_lora(tmp_path / "a.gguf", architecture="qwen3")
    assert put("other", content).status_code == 200
    answer = own_host.post(
        "/api/generate", {"model": f"{base}:other", "prompt": "a", "stream": False}
    )
    assert answer.status_code == 500
    assert "unable to load adapter" in answer.json()["error"]
    assert "does not fit the model" in answer.json()["error"]
