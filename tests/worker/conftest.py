"""A real model host in a process of its own, and the inputs of a stage."""

import io
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from loco.contracts.requests import JobRequest
from loco.contracts.specs import Inputs, JobSpec
from loco.recipes.resolve import resolve
from loco.stage.program import Emitter
from loco_worker.ollama.bases import wheel_gguf

REPOSITORY = Path(__file__).parents[2]
JOB = "20261122-143722-4f9a2c"


class Heard:
    """An emitter and what was said through it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.emit = Emitter(self.stream)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events so far."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    @property
    def logs(self) -> str:
        """The log lines so far."""
        return "\n".join(e["message"] for e in self.events if e["type"] == "log")


@pytest.fixture
def heard() -> Heard:
    """Hears a stage run in this process."""
    return Heard()


@pytest.fixture(scope="session")
def model_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a model host with an empty store."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("modelhost")
    command = [str(REPOSITORY / ".venv-train" / "bin" / "python"), "-m", "loco_modelhost"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder / "store")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    wait_for_model_host(url, process, folder / "log")
    yield url
    process.terminate()
    process.wait(30)


def wait_for_model_host(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once it answers."""
    deadline = time.monotonic() + 90
    while True:
        try:
            httpx.get(f"{url}/api/version", timeout=5, trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@pytest.fixture
def stage_adapters(adapters_dir: Path) -> Path:
    """Recipes, and a short benchmark."""
    items = [
        {"id": "sum", "question": "What is 2 + 2?", "answer": "4"},
        {"id": "capital", "question": "What is the capital of France?", "answer": "Paris"},
    ]
    text = "".join(json.dumps(item) + "\n" for item in items)
    (adapters_dir / "math" / "eval_dataset.jsonl").write_text(text)
    return adapters_dir


@pytest.fixture
def tiny(stage_adapters: Path) -> JobSpec:
    """The spec of a tiny job."""
    return resolve(stage_adapters, JobRequest(adapter="math", profile="tiny"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model under another name in its metadata: another file than the base's."""
    content = wheel_gguf().read_bytes()
    key = b"general.name"
    at = content.index(key) + len(key) + 4 + 8  # a string's type and length come between
    path = tmp_path_factory.mktemp("trained") / "trained.gguf"
    path.write_bytes(content[:at] + b"x" + content[at + 1 :])
    return path


@pytest.fixture
def gguf(stage_adapters: Path, trained: Path) -> Path:
    """What export would have left: here, the untrained model but for its name."""
    path = stage_adapters / "math/runs" / JOB / "export/a1/gguf/unsloth.Q4_K_M.gguf"
    path.parent.mkdir(parents=True)
    os.symlink(trained, path)
    return path


@pytest.fixture
def inputs_of(stage_adapters: Path, tmp_path: Path, model_host: str) -> Callable[..., Inputs]:
    """Makes a stage's inputs; keywords override fields."""

    def make(**more: Any) -> Inputs:
        fields: dict[str, Any] = {
            "job_id": JOB,
            "adapter": "math",
            "adapter_dir": stage_adapters / "math",
            "models_dir": tmp_path / "models",
            "locks_dir": tmp_path / "locks",
            "ollama_host": model_host,
        }
        return Inputs(**{**fields, **more})

    return make


class Answering:
    """A server that speaks as much of Ollama's API as eval uses, and counts what it is asked.

    Attributes:
        models: name to digest.
        answer: gives the text and the reason it ended, of a request's body.
        refuses: gives the error of a request that is not answered.
        asked: (model, system, question) of every chat, in order.
        unloaded: models that had to free their memory, in order.
        unloads: whether it can.
        seconds: how long an answer takes.
    """

    def __init__(self) -> None:
        self.models: dict[str, str] = {}
        self.answer: Callable[[dict[str, Any]], tuple[str, str]] = lambda _: ("7", "stop")
        self.refuses: Callable[[dict[str, Any]], str | None] = lambda _: None
        self.asked: list[tuple[str, str | None, str]] = []
        self.unloaded: list[str] = []
        self.unloads = True
        self.most_at_once = 0
        self.seconds = 0.0
        self.url = ""
        self._now = 0
        self._lock = threading.Lock()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What serves the requests."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(
                    {"version": "0.33.0"}
                    if self.path == "/api/version"
                    else {"models": [{"model": m, "digest": d} for m, d in server.models.items()]}
                )

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if not body["messages"]:
                    server.unloaded.append(body["model"])
                    status = 200 if server.unloads else 500
                    self._send({"done_reason": "unload", "error": "it is stuck"}, status=status)
                    return
                with server._lock:
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                time.sleep(server.seconds)
                turns = {turn["role"]: turn["content"] for turn in body["messages"]}
                text, reason = server.answer(body)
                refusal = server.refuses(body)
                with server._lock:
                    server._now -= 1
                    server.asked.append((body["model"], turns.get("system"), turns["user"]))
                if refusal is not None:
                    self._send({"error": refusal}, status=400)
                    return
                self._send(
                    {
                        "message": {"role": "assistant", "content": text},
                        "done_reason": reason,
                        "eval_count": len(text.split()),
                        "prompt_eval_count": 9,
                        "eval_duration": 2_000_000_000,
                    }
                )

            def _send(self, value: Any, status: int = 200) -> None:
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

            def handle(self) -> None:
                with suppress(ConnectionError):  # who asked was killed
                    super().handle()

        return Handler


@pytest.fixture
def answering(serve: Callable[[type[BaseHTTPRequestHandler]], str]) -> Answering:
    """A server that answers eval's questions at once."""
    server = Answering()
    server.url = serve(server.handler())
    return server
