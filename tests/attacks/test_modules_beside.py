"""Somebody puts a `yaml.py` where `loco up` is started, and it runs as the service.

`python -m` looks into the current folder first, and so does Celery when its pool child imports the worker:
there it ran even where Python was told not to look.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loco.contracts.stages import Stage

NAMES = ("yaml", "httpx", "json", "celery", "uvicorn", "typer", "redis", "ollama", "queue")
LOCO = Path(sys.executable).parent / "loco"

#: What the pool child does: it imports the worker through Celery's loader.
POOL_CHILD = """
from loco.queue.celery_app import celery_app
from loco.settings import Settings
app = celery_app(Settings(redis_url="redis://127.0.0.1:1/0"))
app.loader.import_task_module("loco_worker.app")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules that leave a mark."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)"
        )
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        [str(LOCO), "--help"],
        [sys.executable, "-P", "-c", POOL_CHILD],
        [sys.executable, "-P", "-m", Stage.PREPARE.program, "--help"],
    ],
    ids=["loco", "pool child", "stage"],
)
def test_what_lies_beside_is_not_run(folder: Path, command: list[str]) -> None:
    environment = {**os.environ, "LOCO_REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    assert done.returncode == 0, done.stderr
