"""`loco up`: the real processes, started, used, killed and stopped."""

import os
import re
import signal
import time

import httpx
import pytest

from loco.client.running import note_path, up_at

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def test_a_job_runs_and_one_ctrl_c_stops_everything(start, alive, descendants, tmp_path) -> None:
    for name in ("yaml", "uvicorn", "celery", "httpx", "billiard", "torch"):
        evil = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)"
        (tmp_path / f"{name}.py").write_text(evil)  # beside `loco up`: nobody's module
    up = start().wait_ready()
    assert "locollm's own model host replaces it at" in up.lines
    job = up.prepare(seed=1)
    assert job["status"] == "succeeded", job
    family = descendants(up.process.pid)
    assert len(family) >= 5
    found = up_at(up.state()["server"])
    assert found is not None
    assert (found.pid, found.data_dir) == (up.process.pid, up.data_dir)

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert not any(map(alive, family))
    assert not (up.data_dir / "up.json").exists()
    assert not note_path(up.data_dir).exists()
    assert "killed" not in up.lines
    assert not (tmp_path / "ran").exists()


def test_dead_children_come_back_and_nothing_is_forgotten(start) -> None:
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


def test_killing_the_supervisor_leaves_nothing_behind(start, alive, descendants) -> None:
    up = start().wait_ready()
    family = descendants(up.process.pid)
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, family)):
        assert time.monotonic() < deadline, family
        time.sleep(0.1)
    assert start().wait_ready().prepare(seed=3)["status"] == "succeeded"


def test_two_run_side_by_side_but_not_on_one_folder(start) -> None:
    one, other, same = start("one"), start("other"), None
    one.wait_ready()
    other.wait_ready()
    assert one.state()["server"] != other.state()["server"]
    assert one.state()["redis_url"] != other.state()["redis_url"]
    same = start("one")
    assert same.process.wait(30) != 0
    assert "Another `loco up` already uses" in same.lines
    assert "--data-dir" in same.lines
    assert one.process.poll() is None


def test_a_missing_training_environment_names_the_target(start) -> None:
    up = start(LOCO_TRAIN_PYTHON="/nowhere/bin/python")
    assert up.process.wait(30) != 0
    assert "make setup" in up.lines


def test_a_redis_that_does_not_answer_is_not_replaced_silently(start) -> None:
    up = start(LOCO_REDIS_URL="redis://127.0.0.1:1/0")
    assert up.process.wait(60) != 0
    assert "LOCO_REDIS_URL" in up.lines


def test_settings_the_api_refuses_end_up_with_its_words(start) -> None:
    up = start(LOCO_HOST="0.0.0.0")
    assert up.process.wait(60) != 0
    assert "loco keys create" in up.lines


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").is_success
    except httpx.HTTPError:
        return False
