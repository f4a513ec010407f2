"""`.venv/bin/loco` as a user's shell starts it, against a real API."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loco import Client
from loco.cli.main import main

LOCO = Path(sys.executable).with_name("loco")


@pytest.fixture
def environment(live_api, tmp_path):
    """What a user's shell has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCO_")}
    return {**kept, "LOCO_SERVER": live_api.url, "LOCO_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
def client(live_api):
    with Client(live_api.url) as client:
        yield client


@pytest.fixture
def loco(environment, tmp_path):
    """Runs one command to its end."""

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LOCO, *words],
            env={**environment, **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    return run


@pytest.fixture
def started(environment, tmp_path):
    """Starts a command that a test goes on beside."""
    processes = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [LOCO, *words],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run(live_api, tmp_path, monkeypatch, capsys):
    """Runs a command in this process: its exit code, what it prints and what it says besides."""
    monkeypatch.setenv("LOCO_SERVER", live_api.url)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
