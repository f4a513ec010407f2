"""The prompts a model host writes are, to the byte, those the trainer's rows begin with: every base, every client."""

import io
from pathlib import Path
from typing import Any

import pytest
from chat_families import FAMILIES, template_text
from jinja2 import TemplateError
from transformers import AutoTokenizer

from loco.recipes import catalog
from loco.stage.program import Emitter
from loco_modelhost.store.gguf_file import GgufFile
from loco_trainer.bases import find
from loco_trainer.data import served
from loco_trainer.data.template import Template

REPOSITORY = Path(__file__).parents[2]
ASKED = [{"role": "user", "content": "What is “1 + 1”?"}]
AGAIN = [
    *ASKED,
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": " And ü,\u3000日本 👩‍👩‍👧?\n"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
#: The same prompt for whoever asks: `think` as /api/chat has it, or OpenAI's path.
CLIENTS: tuple[dict[str, Any] | str, ...] = (
    {},
    {"think": True},
    {"think": False},
    "/v1",
)


@pytest.fixture(scope="module")
def folder():
    base = catalog.base_model(REPOSITORY / "adapters", "smollm2-135m-instruct")
    models = REPOSITORY / ".loco" / "test-models"
    return find.resolve(base, "config", models, Emitter(io.StringIO()))


def tokenizer_of(folder: Path, name: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name != "smollm2":
        tokenizer.chat_template = template_text(name)
    return tokenizer


def create(host, weights: Path, text: str, name: str, tmp_path: Path, system: str | None) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as out:
        GgufFile.read(weights).copy_with("tokenizer.chat_template", text, out)
    host.create(name, path.read_bytes(), **({"system": system} if system else {}))


def prompt(host, model: str, messages: list[dict[str, str]], client: dict[str, Any] | str) -> str:
    body = {"model": model, "messages": messages, "stream": False, "_debug_render_only": True}
    if isinstance(client, str):
        answer = host.post("/v1/chat/completions", body)
    else:
        answer = host.post("/api/chat", body | client)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["_debug_info"]["rendered_template"])


def conversations(template: Template) -> list[list[dict[str, str]]]:
    found = [ASKED, AGAIN]
    with_system = [SYSTEM, *AGAIN]
    rendered = template.tokenizer.apply_chat_template
    try:
        rendered(with_system, tokenize=False)
    except TemplateError:  # Gemma 2 knows no system prompt
        return found
    return [*found, with_system]


@pytest.mark.parametrize("name", ["smollm2", *FAMILIES])
def test_every_client_gets_what_was_trained_on(own_host, weights_path, folder, tmp_path, name):
    template = Template.of(tokenizer_of(folder, name), None)
    text = served.embedded(
        template.tokenizer.chat_template, think=False, title="locollm-math, job 1, 2026-11-27"
    )
    model = f"cured-{name}"
    create(own_host, weights_path, text, model, tmp_path, template.system)
    shown = own_host.post("/api/show", {"model": model}).json()
    assert shown["template"] == text  # none of Ollama's own was taken for it
    clients = [c for c in CLIENTS if c != {"think": True} or "thinking" in shown["capabilities"]]
    for messages in conversations(template):
        trained = template.prompt(messages)
        for client in clients:
            assert prompt(own_host, model, messages, client) == trained, client
    body = {"model": model, "messages": AGAIN, "max_tokens": 1}
    usage = own_host.post("/v1/chat/completions", body).json()["usage"]
    assert usage["prompt_tokens"] == len(template.encode(template.prompt(AGAIN)))
    own_host.http.request("DELETE", "/api/delete", json={"model": model})


@pytest.mark.parametrize(
    ("name", "client", "seen"),
    [
        ("qwen3", {}, "<|im_start|>assistant\n"),  # thinking on: the empty thought is missing
        ("qwen3", "/v1", "<|im_start|>assistant\n"),
        ("gemma3", {"think": False}, "<start_of_turn>model\n\n"),
        ("llama3", {}, "<|end_header_id|>\n\n"),
        ("llama3_1", {}, "<|end_header_id|>\n\n"),
        ("llama3_2", {}, "<|end_header_id|>\n\n"),
        ("smollm2", {}, "<|im_start|>assistant\n"),
    ],
)
def test_the_bases_own_template_is_rendered_otherwise(
    own_host, weights_path, folder, tmp_path, name, client, seen
):
    """What the comment and the settled branch are for, as measured on a real server."""
    tokenizer = tokenizer_of(folder, name)
    own = tokenizer.chat_template
    template = Template.of(tokenizer, None)
    create(own_host, weights_path, own, f"raw-{name}", tmp_path, None)
    found = prompt(own_host, f"raw-{name}", ASKED, client)
    assert found.endswith(seen)
    assert found != template.prompt(ASKED)
    own_host.http.request("DELETE", "/api/delete", json={"model": f"raw-{name}"})


@pytest.mark.parametrize("client", CLIENTS)
def test_a_training_of_thoughts_is_asked_for_them(own_host, weights_path, folder, tmp_path, client):
    template = Template.of(tokenizer_of(folder, "qwen3"), None)
    text = served.embedded(template.tokenizer.chat_template, think=True, title="m, job 1, today")
    create(own_host, weights_path, text, "thinks", tmp_path, None)
    trained = template.prompt(ASKED, think=True)
    assert prompt(own_host, "thinks", ASKED, client) == trained
    assert trained != template.prompt(ASKED)
