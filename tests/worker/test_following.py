"""The real worker process has Ollama and adapters/registry.yaml follow the ledger."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tags_server import Tags
from versions import MODEL, Builder

from loco.contracts.specs import JobSpec
from loco.ledger.ledger import Ledger
from loco.recipes import registry
from loco.settings import Settings, Timings

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def test_a_worker_makes_up_for_what_happened_while_none_ran(
    ledger: Ledger,
    spec: Callable[..., JobSpec],
    settings: Settings,
    tags: Tags,
    tmp_path: Path,
) -> None:
    build = Builder(ledger, spec)
    jobs = [build.promoted().id for _ in range(2)]
    for job in jobs:
        tags.models[f"{MODEL}:{job}"] = f"digest-{job}"
    here = settings.model_copy(update={"ollama_host": tags.url, "timings": Timings(reap=0.2)})
    log = tmp_path / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "loco_worker"],
            env={**os.environ, **here.environment()},
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        _until(lambda: tags.models.get(f"{MODEL}:latest") == f"digest-{jobs[1]}", worker, log)
        _until(lambda: (settings.adapters_dir / "registry.yaml").is_file(), worker, log)
        ledger.registry.promote("math", 1, by="me", reason="", force=False)
        _until(lambda: tags.models[f"{MODEL}:latest"] == f"digest-{jobs[0]}", worker, log)
        _until(lambda: _promoted(settings) == 1, worker, log)
    finally:
        worker.terminate()
        worker.wait(60)
    assert "locollm-math-tiny:latest is version 1" in log.read_text()


def _promoted(settings: Settings) -> int | None:
    current = registry.current(settings.adapters_dir, "math")
    return current.version if current else None


def _until(holds: Callable[[], bool], worker: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert worker.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
