"""Eval fetches a missing base model: the stream of Ollama's /api/pull, played by a small server.

No library of models can be reached from a test; lines and errors are those of Ollama's API
documentation.
"""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from loco.contracts.errors import OllamaRefused
from loco.contracts.specs import JobSpec
from loco.serving.host import OllamaHost
from loco.stage.program import Stopped
from loco_worker.ollama.bases import fetch_base

pytestmark = pytest.mark.redis

LAYER = {"status": "pulling 3e4cb1417446", "digest": "sha256:3e4c", "total": 2_000_000_000}
PULL = [
    {"status": "pulling manifest"},
    LAYER | {"completed": 500_000_000},
    LAYER | {"completed": 2_000_000_000},
    {"status": "success"},
]


@pytest.fixture
def library(
    serve: Callable[[type[BaseHTTPRequestHandler]], str],
) -> Callable[[list[dict[str, Any]]], tuple[str, list[dict[str, Any]]]]:
    """Starts a server that answers /api/pull with some lines and keeps what it was asked."""

    def start(lines: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
        asked: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                asked.append({"path": self.path, **json.loads(body)})
                self.send_response(200)
                self.send_header("content-type", "application/x-ndjson")
                self.end_headers()
                for line in lines:
                    self.wfile.write(json.dumps(line).encode() + b"\n")

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return serve(Handler), asked

    return start


def test_a_missing_base_is_pulled_with_progress(
    library: Any, spec: Callable[..., JobSpec], heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loco.stage.program.PROGRESS_PER_SECOND", 1e9)  # hear every line
    url, asked = library(PULL)
    with OllamaHost(url) as host:
        fetch_base(host, spec(profile="default").eval.base_model, heard.emit)
    assert asked == [{"path": "/api/pull", "model": "qwen3:4b", "insecure": False, "stream": True}]
    said = [e["progress"] for e in heard.events if e["type"] == "progress"]
    assert [s["message"] for s in said] == [
        "pulling qwen3:4b: pulling manifest",
        "pulling qwen3:4b: pulling 3e4cb1417446 500 of 2000 MB",
        "pulling qwen3:4b: pulling 3e4cb1417446 2000 of 2000 MB",
        "pulling qwen3:4b: success",
    ]
    assert [s.get("percent") for s in said] == [None, 25.0, 100.0, None]


def test_a_pull_that_fails_half_way_is_said(
    library: Any, spec: Callable[..., JobSpec], heard: Any
) -> None:
    url, _ = library([*PULL[:2], {"error": "pull model manifest: file does not exist"}])
    with OllamaHost(url) as host, pytest.raises(OllamaRefused, match="file does not exist"):
        fetch_base(host, spec(profile="default").eval.base_model, heard.emit)


def test_a_cancel_ends_a_pull(library: Any, spec: Callable[..., JobSpec], heard: Any) -> None:
    url, _ = library(PULL)
    heard.emit.request_stop()
    with OllamaHost(url) as host, pytest.raises(Stopped):
        fetch_base(host, spec(profile="default").eval.base_model, heard.emit)
