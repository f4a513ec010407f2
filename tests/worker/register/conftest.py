"""An exported model with its reference, and a server that tampers with what passes."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from proofs import EXPORTED, Body, Register

from loco.contracts.files import sha256_of
from loco.contracts.results import RegisterResult
from loco.contracts.serving import REFERENCE, ServingReference
from loco.contracts.specs import Inputs, JobSpec
from loco.serving.host import OllamaHost
from loco_worker import register
from loco_worker.ollama.bases import wheel_gguf

REPOSITORY = Path(__file__).parents[3]


@dataclass(frozen=True)
class Exported:
    """What export leaves: the model, here also its base, and what it saw of the model."""

    trained: Path
    base: Path
    reference: Path

    @property
    def files(self) -> dict[str, Path]:
        return {EXPORTED: self.trained, f"export/{REFERENCE}": self.reference}

    def read(self) -> ServingReference:
        return ServingReference.model_validate_json(self.reference.read_bytes())


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    python = REPOSITORY / ".venv-train" / "bin" / "python"
    program = Path(__file__).with_name("served_model.py")
    done = subprocess.run(
        [str(python), str(program), str(wheel_gguf()), str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Exported(folder / "trained.gguf", folder / "base.gguf", folder / REFERENCE)


@pytest.fixture
def register_it(
    tiny: JobSpec,
    exported: Exported,
    inputs_of: Callable[..., Inputs],
    tmp_path: Path,
    heard: Any,
) -> Register:
    """Runs the stage on the exported model; keywords override the inputs."""

    def go(**inputs: Any) -> RegisterResult:
        (tmp_path / "out").mkdir(exist_ok=True)
        given = inputs_of(**{"files": exported.files, **inputs})
        return register.run(tiny.register_, given, tmp_path / "out", heard.emit)

    return go


@pytest.fixture
def tampering(serve: Callable[..., str], model_host: str) -> Callable[..., str]:
    """Starts a server before the model host: `tampering(create=…, answer=…)` gives its address.

    `create` changes the body of /api/create; `answer(path, request, reply)` the JSON of any reply.
    """

    def start(
        create: Callable[[Body], Body] = lambda body: body,
        answer: Callable[[str, Body, Body], Body] = lambda path, request, reply: reply,
    ) -> str:
        class Proxy(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.forward(b"")

            def do_GET(self) -> None:
                self.forward(b"")

            def do_POST(self) -> None:
                self.forward(self.rfile.read(int(self.headers.get("content-length", 0))))

            def forward(self, content: bytes) -> None:
                blob = self.path.startswith("/api/blobs/")
                request = json.loads(content) if content and not blob else {}
                if self.path == "/api/create":
                    request = create(request)
                if request:
                    content = json.dumps(request).encode()
                reply = httpx.request(
                    self.command,
                    model_host + self.path,
                    content=content,
                    timeout=60,
                    trust_env=False,
                )
                body = reply.content
                if body and reply.headers.get("content-type") == "application/json":
                    body = json.dumps(answer(self.path, request, reply.json())).encode()
                self.send_response(reply.status_code)
                self.send_header("content-type", reply.headers.get("content-type", "text/plain"))
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return serve(Proxy)

    return start


@pytest.fixture
def blob_of(model_host: str) -> Callable[[Path], str]:
    """Uploads a file; gives its digest."""

    def upload(path: Path) -> str:
        digest = f"sha256:{sha256_of(path)}"
        with OllamaHost(model_host) as host:
            if not host.has_blob(digest):
                host.upload(path, digest, lambda _: None)
        return digest

    return upload
