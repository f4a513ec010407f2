"""`loco up`: the real processes, started, used, killed and stopped."""

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

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
TRAIN_PYTHON = REPOSITORY / ".venv-train" / "bin" / "python"


class Up:
    """A running `loco up`."""

    def __init__(self, data_dir: Path, adapters_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_suffix(".out")
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("LOCO_")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loco.cli", "up", "--port", "0"],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=data_dir.parent,
                env={
                    **inherited,
                    "LOCO_DATA_DIR": str(data_dir),
                    "LOCO_ADAPTERS_DIR": str(adapters_dir),
                    "LOCO_TRAIN_PYTHON": str(TRAIN_PYTHON),
                    "LOCO_LEASE_SECONDS": "6",
                    "LOCO_RENEW_SECONDS": "0.5",
                    "LOCO_REAP_SECONDS": "1",
                    "LOCO_REHINT_SECONDS": "2",
                    **environment,
                },
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


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descendants(pid: int) -> list[int]:
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    # threads fork too: the supervisor starts its children from one of them
    for task in Path(f"/proc/{pid}/task").iterdir():
        if task.name != str(pid):
            children += [int(c) for c in (task / "children").read_text().split()]
    return children + [d for c in children for d in descendants(c)]


def test_a_job_runs_and_one_ctrl_c_stops_everything(start: Callable[..., Up]) -> None:
    up = start().wait_ready()
    assert "our model host stands in at" in up.lines
    job = up.prepare(seed=1)
    assert job["status"] == "succeeded", job
    family = descendants(up.process.pid)
    assert len(family) >= 5

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert not any(map(alive, family))
    assert not (up.data_dir / "up.json").exists()
    assert "killed" not in up.lines


def test_dead_children_come_back_and_nothing_is_forgotten(start: Callable[..., Up]) -> None:
    up = start().wait_ready()
    first = up.prepare(seed=1)
    for name in ("worker", "api", "redis"):
        old = up.state()["pids"][name]
        os.kill(old, signal.SIGKILL)
        up.wait_for(lambda name=name, old=old: up.state()["pids"].get(name) not in (old, None))  # type: ignore[misc]
        assert re.search(rf"{name} .*started again", up.lines), up.lines
    with up.http() as http:
        up.wait_for(lambda: _answers(http))
        assert http.get(f"/jobs/{first['id']}").json()["status"] == "succeeded"
    assert up.prepare(seed=2)["status"] == "succeeded"


def test_killing_the_supervisor_leaves_nothing_behind(start: Callable[..., Up]) -> None:
    up = start().wait_ready()
    family = descendants(up.process.pid)
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, family)):
        assert time.monotonic() < deadline, family
        time.sleep(0.1)
    assert start().wait_ready().prepare(seed=3)["status"] == "succeeded"


def test_two_run_side_by_side_but_not_on_one_folder(start: Callable[..., Up]) -> None:
    one, other, same = start("one"), start("other"), None
    one.wait_ready()
    other.wait_ready()
    assert one.state()["server"] != other.state()["server"]
    assert one.state()["redis_url"] != other.state()["redis_url"]
    same = start("one")
    assert same.process.wait(30) != 0
    assert "Another `loco up` runs on" in same.lines
    assert "--data-dir" in same.lines
    assert one.process.poll() is None


def test_a_missing_training_environment_names_the_target(start: Callable[..., Up]) -> None:
    up = start(LOCO_TRAIN_PYTHON="/nowhere/bin/python")
    assert up.process.wait(30) != 0
    assert "make setup" in up.lines


def test_a_redis_that_does_not_answer_is_not_replaced_silently(start: Callable[..., Up]) -> None:
    up = start(LOCO_REDIS_URL="redis://127.0.0.1:1/0")
    assert up.process.wait(60) != 0
    assert "LOCO_REDIS_URL" in up.lines


def test_settings_the_api_refuses_end_up_with_its_words(start: Callable[..., Up]) -> None:
    up = start(LOCO_HOST="0.0.0.0")
    assert up.process.wait(60) != 0
    assert "loco keys create" in up.lines


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").is_success
    except httpx.HTTPError:
        return False
