"""A real `loco up` for each test that asks: every service a process, driven from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from own_cpus import take_own_cpus

REPOSITORY = Path(__file__).parents[2]
TRAIN_PYTHON = REPOSITORY / ".venv-train" / "bin" / "python"

take_own_cpus()


class Up:
    """A running `loco up`."""

    def __init__(self, data_dir: Path, adapters_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_suffix(".out")
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("LOCO_")}
        self.environment = {
            **inherited,
            "LOCO_DATA_DIR": str(data_dir),
            "LOCO_ADAPTERS_DIR": str(adapters_dir),
            "LOCO_TRAIN_PYTHON": str(TRAIN_PYTHON),
            "LOCO_LEASE_SECONDS": "6",
            "LOCO_RENEW_SECONDS": "0.5",
            "LOCO_REAP_SECONDS": "1",
            "LOCO_REHINT_SECONDS": "2",
            **environment,
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "loco.cli.main", "up", "--port", "0"],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=data_dir.parent,
                env=self.environment,
                start_new_session=True,
            )

    @property
    def lines(self) -> str:
        return self.output.read_text()

    def state(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.data_dir / "up.json").read_text())
        return document

    def wait_ready(self) -> "Up":
        self.wait_for(lambda: re.search(r"^\S+  ready ", self.lines, re.M) is not None)
        return self

    def wait_for(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.1)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.state()["server"], trust_env=False, timeout=10)

    def prepare(self, seed: int) -> dict[str, Any]:
        """Runs a small job to its end."""
        request = {"adapter": "math", "profile": "tiny", "stages": ["prepare"], "seed": seed}
        with self.http() as http:
            answer = http.post("/jobs", json=request)
            assert answer.status_code == 202, answer.text
            path = f"/jobs/{answer.json()['id']}"
            self.wait_for(lambda: bool(http.get(path).json()["is_terminal"]))
            job: dict[str, Any] = http.get(path).json()
            return job

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture
def start(tmp_path: Path, adapters_dir: Path) -> Iterator[Callable[..., Up]]:
    benchmark = REPOSITORY / "adapters" / "math" / "eval_dataset.jsonl"
    (adapters_dir / "math" / "eval_dataset.jsonl").write_bytes(benchmark.read_bytes())
    started: list[Up] = []

    def start_one(name: str = "data", **environment: str) -> Up:
        up = Up(tmp_path / name, adapters_dir, **environment)
        started.append(up)
        return up

    yield start_one
    for up in started:
        up.stop()


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Whether a process still runs."""
    return is_alive


@pytest.fixture
def descendants() -> Callable[[int], list[int]]:
    """Every process below a process."""
    return all_below


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def all_below(pid: int) -> list[int]:
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    # threads fork too: the supervisor starts its children from one of them
    for task in Path(f"/proc/{pid}/task").iterdir():
        if task.name != str(pid):
            children += [int(c) for c in (task / "children").read_text().split()]
    return children + [d for c in children for d in all_below(c)]
