"""Promotion, rollback and restore on a real model host, with answers of real models."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from versions import MODEL, Builder, register_result

from loco.contracts.artifacts import Artifact, describe
from loco.contracts.errors import RegistrationFailed
from loco.contracts.evaluation import Verdict
from loco.contracts.files import sha256_of
from loco.contracts.serving import REFERENCE, ServingReference
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.ledger import Ledger
from loco.serving import promotion
from loco.serving.host import OllamaHost
from loco.serving.latest import follow
from loco.settings import Settings
from loco_worker.ollama.bases import wheel_gguf

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LATEST = f"{MODEL}:latest"


@pytest.fixture
def here(settings: Settings, model_host: str) -> Settings:
    return settings.model_copy(update={"ollama_host": model_host})


@pytest.fixture
def registered(
    ledger: Ledger, spec: Callable[..., JobSpec], here: Settings
) -> Callable[[str], str]:
    """Builds a version whose system prompt is given; its GGUF is the untrained base."""
    build = Builder(ledger, spec)
    blob = f"sha256:{sha256_of(wheel_gguf())}"

    def make(system: str) -> str:
        pointer = ledger.registry.promoted(MODEL)
        facts: dict[str, Any] = {"blob": blob, "system": system}
        facts["parameters"] = {"temperature": 0.0, "num_ctx": 512, "stop": ["<|im_end|>"]}
        job = build.registered(**facts)
        gguf: Path = here.adapters_dir / register_result(job.id)["version"]["gguf"]
        gguf.parent.mkdir(parents=True)
        shutil.copyfile(wheel_gguf(), gguf)
        version = ledger.registry.of_job("math", job.id)
        assert version is not None
        promotion.restore(ledger, here, "math", version.version, by="test")
        build.measured(job, Verdict.UNPROVEN, compared=pointer.version if pointer else None)
        return str(job.id)

    return make


def prompted(url: str) -> str:
    """What `latest` makes of a prompt: its system prompt tells the versions apart."""
    with OllamaHost(url) as host:
        return str(host.rendered(LATEST, [{"role": "user", "content": "Hi"}]))


def delete(url: str, name: str) -> None:
    httpx.request("DELETE", f"{url}/api/delete", json={"model": name}).raise_for_status()


def test_promotion_rollback_and_an_emptied_server(ledger, here, model_host, registered):
    first = registered("You are the first.")
    follow(ledger, model_host, MODEL)
    assert "You are the first." in prompted(model_host)
    second = registered("You are the second.")
    follow(ledger, model_host, MODEL)
    assert "You are the second." in prompted(model_host)

    promotion.rollback(ledger, here, "math", MODEL, by="me", reason="")
    assert "You are the first." in prompted(model_host)
    promotion.promote(ledger, here, "math", 2, by="me", reason="", force=False)
    assert "You are the second." in prompted(model_host)

    with OllamaHost(model_host) as host:
        before = host.digests()[LATEST]
    for name in (LATEST, f"{MODEL}:{first}", f"{MODEL}:{second}"):
        delete(model_host, name)
    made = promotion.restore(ledger, here, "math", 2, by="me")
    assert (made.created, made.promoted, made.version) == (True, True, 2)
    assert "You are the second." in prompted(model_host)
    assert made.digest == made.previous_digest == before, "the same server, the same model"
    assert ledger.registry.promoted(MODEL).served_digest == before
    made = promotion.restore(ledger, here, "math", 1, by="me")
    assert (made.created, made.promoted) == (True, False)
    promotion.rollback(ledger, here, "math", MODEL, by="me", reason="")
    assert "You are the first." in prompted(model_host)


def test_what_a_real_server_renders_is_compared(ledger, here, model_host, spec):
    """The prompts that the host renders pass as a reference; one character else does not."""
    build = Builder(ledger, spec)
    facts: dict[str, Any] = {"blob": f"sha256:{sha256_of(wheel_gguf())}", "system": "Be brief."}
    facts["parameters"] = {"temperature": 0.0, "num_ctx": 512, "stop": ["<|im_end|>"]}
    rendered = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    for number, text in ((1, rendered), (2, rendered.replace("brief.", "brief. "))):

        def exported(job_id: str, text: str = text) -> tuple[Artifact, ...]:
            path = here.adapters_dir / "math" / "runs" / job_id / "export" / "a1" / REFERENCE
            (path.parent / "gguf").mkdir(parents=True)
            shutil.copyfile(wheel_gguf(), path.parent / "gguf" / "unsloth.Q4_K_M.gguf")
            path.write_text(reference(text).model_dump_json())
            return (describe(here.adapters_dir, path, name=REFERENCE, stage=Stage.EXPORT),)

        build.registered(exported=exported, **facts)
        if text == rendered:
            assert promotion.restore(ledger, here, "math", number, by="me").warnings == ()
        else:
            with pytest.raises(RegistrationFailed, match="from character 28 on"):
                promotion.restore(ledger, here, "math", number, by="me")


def reference(rendered: str) -> ServingReference:
    prompt = {
        "name": "plain",
        "messages": [{"role": "user", "content": "Hi"}],
        "rendered": rendered,
        "tokens": 1,
    }
    return ServingReference.model_validate(
        {
            "prompts": [prompt],
            "num_predict": 64,
            "chat_template_sha256": "",
            "architecture": "llama",
            "context_length": 8192,
            "parameter_count": 1,
            "tensors": {},
            "vocabulary": 1,
            "vocabulary_sha256": "",
            "thinks": False,
        }
    )
