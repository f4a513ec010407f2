"""An adapter on its base: what goes wrong is named before it serves. The good way is tests/acceptance."""

import shutil
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from proofs import Body, Register, Tampering, failures, said

from loco.contracts.errors import CandidateMissing
from loco.contracts.files import sha256_of
from loco.contracts.serving import REFERENCE, ServedBase
from loco.contracts.stages import Stage
from loco.serving.host import OllamaHost

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def lora(path: Path) -> Path:
    """A LoRA of zeros on one layer of SmolLM2: it changes no answer."""
    keys = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    shapes = {"a": (576, 8), "b": (576, 8)[::-1]}
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, len(keys) + 1)
    for key, value in keys.items():
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("adapter.lora.alpha") + struct.pack("<If", 6, 16.0)
    for number, (part, shape) in enumerate(shapes.items()):
        head += text(f"blk.0.attn_output.weight.lora_{part}")
        head += struct.pack("<IQQIQ", 2, *shape, 0, number * 576 * 8 * 4)
    path.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(2 * 576 * 8 * 4))
    return path


@pytest.fixture
def alone(exported: Any, tmp_path: Path) -> dict[str, Any]:
    """The inputs of register after an export of an adapter alone."""
    kept = tmp_path / "models" / "served" / "smol.gguf"
    kept.parent.mkdir(parents=True)
    shutil.copyfile(exported.base, kept)
    digest = sha256_of(kept)
    base = ServedBase(
        model=f"locollm-base:smol-{digest[:12]}",
        blob=f"sha256:{digest}",
        path="served/smol.gguf",
        size=kept.stat().st_size,
    )
    adapter = lora(tmp_path / "adapter.gguf")
    facts = {"served_base": base.model_dump(), "sha256": sha256_of(adapter)}
    files = {"export/gguf/adapter.gguf": adapter, f"export/{REFERENCE}": exported.reference}
    return {"files": files, "results": {Stage.EXPORT: facts}}


def test_an_adapter_that_changes_nothing_is_told_by_its_answers(
    register_it: Register, alone: dict[str, Any], tmp_path: Path, model_host: str
) -> None:
    # the base's answers are longer than the trained model's
    assert failures(register_it, tmp_path, **alone) == {"greedy_answers", "ends_with_stop"}
    base = alone["results"][Stage.EXPORT]["served_base"]
    with OllamaHost(model_host) as host:
        shown = host.show(base["model"])
    # what stands on the base would inherit them
    assert not shown.get("system")
    assert not shown.get("parameters")
    assert "sha256:" in said(tmp_path, "digest_new")


@pytest.mark.parametrize("asked", [False, True])
def test_a_version_has_one_name_unless_the_base_is_asked_for(
    register_it: Register, alone: dict[str, Any], tmp_path: Path, model_host: str, asked: bool
) -> None:
    """Every job left a `MODEL:JOB_ID-base` behind in Ollama, asked for or not."""
    job = "20261128-120000-aaaaaa"
    alone["results"][Stage.EXPORT]["base_asked"] = asked
    failures(register_it, tmp_path, job_id=job, **alone)
    with OllamaHost(model_host) as host:
        names = {name.partition(":")[2] for name in host.digests() if job in name}
    assert names == ({job, f"{job}-base"} if asked else {job})


def test_a_server_that_leaves_the_adapter_out_is_named(
    register_it: Register, alone: dict[str, Any], tampering: Tampering, tmp_path: Path
) -> None:
    def create(body: Body) -> Body:
        return {name: value for name, value in body.items() if name != "adapters"}

    failed = failures(register_it, tmp_path, ollama_host=tampering(create=create), **alone)
    assert failed == {"digest_new", "greedy_answers", "ends_with_stop"}
    assert "it has adapter none" in said(tmp_path, "digest_new")


def test_a_server_too_old_for_adapters_gets_nothing(
    register_it: Register, alone: dict[str, Any], tampering: Tampering, tmp_path: Path
) -> None:
    asked = []

    def answer(path: str, request: Body, reply: Body) -> Body:
        asked.append(path)
        return {"version": "0.5.4"} if path == "/api/version" else reply

    failed = failures(register_it, tmp_path, ollama_host=tampering(answer=answer), **alone)
    assert failed == {"adapters"}
    assert said(tmp_path, "adapters").startswith("Ollama 0.5.4 does not take adapters")
    assert "/api/create" not in asked


def test_a_base_that_is_nowhere_says_how_to_get_it(
    register_it: Register, alone: dict[str, Any], tmp_path: Path, model_host: str
) -> None:
    base = alone["results"][Stage.EXPORT]["served_base"]
    httpx.request("DELETE", f"{model_host}/api/delete", json={"model": base["model"]})
    kept = tmp_path / "models" / base["path"]
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(CandidateMissing, match="has changed since it was written"):
        register_it(**alone)
    kept.unlink()
    with pytest.raises(CandidateMissing, match="its GGUF is not at") as caught:
        register_it(**alone)
    assert base["model"] in caught.value.message
    assert "--no-reuse" in str(caught.value.hint)
    base["path"] = "../../etc/passwd"
    with pytest.raises(CandidateMissing, match="leads outside"):
        register_it(**alone)
