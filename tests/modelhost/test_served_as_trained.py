"""The prompts a model host writes are, to the byte, those the trainer's rows begin with."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from chat_families import template_text
from transformers import AutoTokenizer

from loco.recipes import catalog
from loco.stage.program import Emitter
from loco_trainer.bases import find
from loco_trainer.data.template import Template

REPOSITORY = Path(__file__).parents[2]
ASKED = [{"role": "user", "content": "What is “1 + 1”?"}]
AGAIN = [*ASKED, {"role": "assistant", "content": "2"}, {"role": "user", "content": "And ü?"}]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5", "qwen3", "llama3_2", "gemma3", "phi3_5"])
def test_the_host_renders_what_was_trained_on(own_host, weights_path, tmp_path, name):
    base = catalog.base_model(REPOSITORY / "adapters", "smollm2-135m-instruct")
    models = REPOSITORY / ".loco" / "test-models"
    tokenizer = AutoTokenizer.from_pretrained(
        find.resolve(base, "config", models, Emitter(io.StringIO()))
    )
    if name != "smollm2":
        tokenizer.chat_template = template_text(name)
    template = Template.of(tokenizer, None)
    own_host.create(
        name,
        with_template(weights_path, tokenizer.chat_template, tmp_path / "model.gguf"),
        system=template.system or "",
    )
    for messages in (ASKED, AGAIN, [SYSTEM, *AGAIN]):
        body = {"model": name, "messages": messages, "think": False, "stream": False}
        answer = own_host.post("/api/chat", {**body, "_debug_render_only": True})
        assert answer.status_code == 200, answer.text
        assert answer.json()["_debug_info"]["rendered_template"] == template.prompt(messages)


def with_template(weights: Path, template: str, path: Path) -> bytes:
    """The model with another chat template, as export would have embedded it."""
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force"]
    command += ["--chat-template", template, str(weights), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path.read_bytes()
