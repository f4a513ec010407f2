"""The whole pipeline through HTTP only: real services, real training, real GGUF, real answers."""

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(2400)]

#: `tiny`, smaller: what a test can wait for.
SMALL: dict[str, Any] = {
    "adapter": "math",
    "profile": "tiny",
    "prepare": {"examples": 96},
    "eval": {"limit": 3, "num_predict": 48, "sets": {"held_out": {"count": 4}}},
}
STAGES = ["prepare", "train", "export", "register", "eval"]
MINUTES = 60.0


class Jobs:
    """Submits and polls like a user's script."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def submit(self, **changes: Any) -> str:
        answer = self.http.post("/jobs", json=SMALL | changes)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def get(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
        return job

    def task(self, job_id: str, stage: str) -> dict[str, Any]:
        task: dict[str, Any] = self.http.get(f"/tasks/{job_id}-{stage}").raise_for_status().json()
        return task

    def wait(self, job_id: str, seconds: float = 20 * MINUTES) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not (job := self.get(job_id))["is_terminal"]:
            assert time.monotonic() < deadline, job
            time.sleep(0.5)
        return job

    def wait_for_checkpoint(self, job_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 10 * MINUTES
        while not (task := self.task(job_id, "train"))["checkpoints"]:
            assert time.monotonic() < deadline, task
            assert task["status"] in ("pending", "queued", "running"), task
            time.sleep(0.2)
        return task


def programs(pids: list[int], module: str) -> list[int]:
    """Those of some processes that run a module."""
    found = []
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue
        if module.encode() in words:
            found.append(pid)
    return found


def test_one_request_builds_deploys_and_measures_an_adapter(start, adapters_dir: Path) -> None:
    up = start().wait_ready()
    with up.http() as http:
        jobs = Jobs(http)
        first = jobs.wait(jobs.submit())
        assert first["status"] == "succeeded", first["error"]
        assert [s["stage"] for s in first["stages"]] == STAGES
        results = {s["stage"]: s["result"] for s in first["stages"]}
        check_results(results)
        check_files(adapters_dir, "math/served/locollm-math-tiny", results)
        check_artifact(http, first)
        check_served(up.state()["ollama_host"], results)

        # nothing changed: everything but the new name in Ollama and its measure is taken over
        again = jobs.wait(jobs.submit())
        statuses = {s["stage"]: s["status"] for s in again["stages"]}
        assert {s for s in STAGES if statuses[s] == "reused"} == {"prepare", "train", "export"}
        assert again["status"] == "succeeded"

        check_sweep(up, http, jobs)

        # another seed prepares other data, on the same services
        other = jobs.wait(jobs.submit(seed=7, stages=["prepare"]))
        assert [s["status"] for s in other["stages"]] == ["succeeded"]


def check_sweep(up: Any, http: httpx.Client, jobs: Jobs) -> None:
    """Two trainings of two steps on the rows of the first job; the better one is what serves."""
    grid = {"train.learning_rate": [1e-5, 1e-3]}
    answer = http.post("/sweeps", json=SMALL | {"grid": grid, "train": {"max_steps": 2}})
    assert answer.status_code == 202, answer.text
    path = f"/sweeps/{answer.json()['id']}"
    up.wait_for(lambda: bool(http.get(path).json()["is_terminal"]), 20 * MINUTES)
    sweep = http.get(path).json()
    assert sweep["status"] == "succeeded", sweep["error"]
    assert [(p["status"], p["rank"]) for p in sweep["points"]] == [
        ("succeeded", 2),
        ("succeeded", 1),
    ]
    assert sweep["points"][1]["validation_loss"] < sweep["points"][0]["validation_loss"]
    assert jobs.get(sweep["prepare_job"])["stages"][0]["status"] == "reused"
    final = jobs.get(sweep["final_job"])
    train = final["stages"][0]
    assert (train["status"], train["reused_from"]) == ("reused", sweep["points"][1]["job"])
    assert train["result"]["total_steps"] == 2
    candidate = final["stages"][2]["result"]["candidate"]
    models = httpx.get(f"{up.state()['ollama_host']}/api/tags").json()["models"]
    assert candidate in {m["name"] for m in models}
    # a version serves already, and three problems are too few to take its place
    assert final["stages"][-1]["result"]["gate"]["verdict"] == "refused"


def check_results(results: dict[str, Any]) -> None:
    assert results["prepare"]["kept"] == 96
    assert results["prepare"]["eval_items_checked"] == 24  # 20 of the benchmark, 4 held out
    assert results["train"]["total_steps"] == 12
    assert results["train"]["last_loss"] < results["train"]["first_loss"]
    assert results["export"]["quantization"] == "Q4_K_M"
    assert results["export"]["sample_answer"]
    assert {c["name"]: c["seen"] for c in results["register"]["checks"] if not c["passed"]} == {}
    assert results["eval"]["gate"]["verdict"] == "unproven", "three problems prove nothing"
    sets = {c["set"]: c for c in results["eval"]["comparisons"] if c["against"] == "base"}
    assert {name: c["candidate"]["total"] for name, c in sets.items()} == {
        "benchmark": 3,
        "held_out": 3,
    }


def check_files(adapters_dir: Path, place: str, results: dict[str, Any]) -> None:
    """The brief's well-known files are those of the job, apart from those of the adapter itself."""
    folder = adapters_dir / place
    gguf = (folder / "gguf" / "unsloth.Q4_K_M.gguf").read_bytes()
    assert hashlib.sha256(gguf).hexdigest() == results["export"]["sha256"]
    assert len((folder / "training_data.jsonl").read_text().splitlines()) == 96
    assert (folder / "checkpoints" / "adapter_model.safetensors").is_file()
    assert (folder / "Modelfile").read_text().count("FROM ./gguf/unsloth.Q4_K_M.gguf") == 1
    assert results["register"]["candidate"] in (adapters_dir / "registry.yaml").read_text()
    assert not (adapters_dir / "math" / "gguf").exists()


def check_artifact(http: httpx.Client, job: dict[str, Any]) -> None:
    path = f"/jobs/{job['id']}/artifacts/export/gguf/unsloth.Q4_K_M.gguf"
    ggufs = {a["name"]: a for s in job["stages"] for a in s["artifacts"]}
    listed, adapter = ggufs["gguf/unsloth.Q4_K_M.gguf"], ggufs["gguf/adapter.gguf"]
    assert adapter["size"] < listed["size"] / 5
    head = http.get(path, headers={"Range": "bytes=0-3"})
    assert (head.status_code, head.content) == (206, b"GGUF")
    assert head.headers["content-range"] == f"bytes 0-3/{listed['size']}"
    assert head.headers["etag"] == f'"{listed["sha256"]}"'
    assert http.get(path, headers={"If-None-Match": head.headers["etag"]}).status_code == 304


def check_served(ollama_host: str, results: dict[str, Any]) -> None:
    body = {
        "model": "locollm-math-tiny",
        "messages": [{"role": "user", "content": "What is 15 + 27?"}],
        "stream": False,
        "options": {"temperature": 0},
    }
    answer = httpx.post(f"{ollama_host}/api/chat", json=body, timeout=60).json()
    assert answer["done_reason"] == "stop"
    assert answer["message"]["content"].strip()
    models = httpx.get(f"{ollama_host}/api/tags").json()["models"]
    digests = {m["name"]: m["digest"] for m in models}
    assert digests["locollm-math-tiny:latest"] == digests[results["register"]["candidate"]]


def test_a_killed_trainer_and_a_killed_worker_go_on_from_the_checkpoint(start, descendants) -> None:
    up = start().wait_ready()
    with up.http() as http:
        jobs = Jobs(http)
        job_id = jobs.submit(stages=["prepare", "train"])
        jobs.wait_for_checkpoint(job_id)
        (trainer,) = programs(descendants(up.process.pid), "loco_trainer.train")
        os.kill(trainer, signal.SIGKILL)
        up.wait_for(lambda: jobs.task(job_id, "train")["attempt"] == 2)
        up.wait_for(lambda: (jobs.task(job_id, "train")["progress"] or {}).get("step") is not None)

        os.kill(up.state()["pids"]["trainer"], signal.SIGKILL)  # the worker's main process
        job = jobs.wait(job_id)
        train = jobs.task(job_id, "train")
        assert job["status"] == "succeeded", job["error"]
        assert train["attempt"] == 3
        assert train["result"]["resumed_from_step"] >= 1


def test_cancel_mid_training_leaves_no_process_and_a_checkpoint_to_resume(
    start, alive, descendants
) -> None:
    up = start().wait_ready()
    with up.http() as http:
        jobs = Jobs(http)
        job_id = jobs.submit(stages=["prepare", "train"])
        jobs.wait_for_checkpoint(job_id)
        (trainer,) = programs(descendants(up.process.pid), "loco_trainer.train")
        http.post(f"/jobs/{job_id}/cancel").raise_for_status()
        assert jobs.wait(job_id, 1 * MINUTES)["status"] == "cancelled"
        up.wait_for(lambda: not alive(trainer), 10)
        assert not programs(descendants(up.process.pid), "loco_trainer.train")

        http.post(f"/jobs/{job_id}/retry").raise_for_status()
        assert jobs.wait(job_id)["status"] == "succeeded"
        assert jobs.task(job_id, "train")["result"]["resumed_from_step"] >= 1
