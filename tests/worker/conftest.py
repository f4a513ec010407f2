"""A real model host in a process of its own, and the inputs of a stage."""

import io
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loco.contracts.requests import JobRequest
from loco.contracts.specs import Inputs, JobSpec
from loco.recipes.resolve import resolve
from loco.stage.program import Emitter
from loco_worker.eval import wheel_gguf

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


@pytest.fixture
def gguf(stage_adapters: Path) -> Path:
    """What export would have left: here, the untrained model itself."""
    path = stage_adapters / "math/runs" / JOB / "export/a1/gguf/unsloth.Q4_K_M.gguf"
    path.parent.mkdir(parents=True)
    os.symlink(wheel_gguf(), path)
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
