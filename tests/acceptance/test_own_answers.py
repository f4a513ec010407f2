"""A job of source self from sampling to gate, through HTTP only; prepare and the model's server are killed on the way."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from watched_ollama import Question, WatchedOllama

from loco.grading.answers import is_correct
from loco_worker.sources import arithmetic

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(2400)]

SEED = 0
TEMPERATURE = 0.3
#: The base solves about one question in six so, fewer at 0.8: few rows are wanted, few steps follow.
OWN: dict[str, Any] = {
    "adapter": "math",
    "profile": "tiny",
    "seed": SEED,
    "prepare": {
        "source": {
            "kind": "self",
            "questions": {"kind": "arithmetic"},
            "instruction": "Solve the problem step by step in words, without code, and end with "
            '"The answer is N."',
            "temperature": TEMPERATURE,
            "num_ctx": 512,
            "num_predict": 64,
        },
        "examples": 3,
        "validation": 0,
    },
    "eval": {
        "sets": {"benchmark": None, "held_out": {"count": 5}},
        "gate": {"min_problems": 5},
        "num_predict": 24,
    },
}
#: Questions whose answers are wrong on purpose: what no base answers.
UNSOLVED = "unsolved.jsonl"
HOPELESS: dict[str, Any] = {
    "adapter": "math",
    "profile": "tiny",
    "stages": ["prepare"],
    "prepare": {
        "source": {
            "kind": "self",
            "questions": {"kind": "jsonl", "path": UNSOLVED},
            "samples": 1,
            "num_ctx": 512,
            "num_predict": 12,
        },
        "examples": 3,
        "validation": 0,
    },
}


def test_own_answers_from_sampling_to_gate_whatever_is_killed(
    start, descendants, adapters_dir: Path, watched_ollama: WatchedOllama
) -> None:
    write_unsolved(adapters_dir / "math" / UNSOLVED)
    watched = watched_ollama
    watched.hold_after(3)
    up = start(OLLAMA_HOST=watched.url, LOCO_RETRY_BACKOFF_SECONDS="1").wait_ready()
    with up.http() as http:
        answer = http.post("/jobs", json=OWN)
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]

        watched.wait_held()
        time.sleep(1)  # what came is on disk
        os.kill(program_of(descendants(up.process.pid), job_id), signal.SIGKILL)
        watched.drop_held(then=2)
        wait_for_retry(http, job_id, "SIGKILL")

        watched.wait_held()
        watched.host.kill()
        watched.drop_held()
        wait_for_retry(http, job_id, "No Ollama answers")
        watched.host.start()

        job = done(http, job_id)
        assert job["status"] == "succeeded", job["error"]
        check_asked_once(watched)
        check_rows(http, job, watched)
        messages = [
            event["data"].get("message") or ""
            for event in events(http, job_id)
            if (event["type"], event["stage"]) == ("stage.progress", "prepare")
        ]
        assert any(re.fullmatch(r"asked \d+, right \d+", message) for message in messages), messages
        assert result(job, "train")["examples"] == 3
        assert result(job, "eval")["gate"]["verdict"] in ("better", "unproven", "refused")

        check_hopeless(http, adapters_dir)


def check_asked_once(watched: WatchedOllama) -> None:
    """No question was answered twice with the same seed."""
    asked: list[Question] = [q for q in watched.answered if q.temperature == TEMPERATURE]
    assert len(asked) > 5
    assert len(set(asked)) == len(asked)


def check_rows(http: httpx.Client, job: dict[str, Any], watched: WatchedOllama) -> None:
    """The rows are right, the base's own, and what the result and samples.jsonl say they are."""
    made = {p.question: p for p, _ in zip(arithmetic.problems(SEED), range(2000), strict=False)}
    rows = [row["conversations"] for row in artifact(http, job, "training_data.jsonl")]
    assert len(rows) == 3
    own = [text.strip() for text in watched.texts]
    for question, answer in rows:
        problem = made[question["content"]]
        assert is_correct(str(problem.answer), answer["content"])
        assert any(answer["content"].startswith(text) for text in own if text)
    samples = artifact(http, job, "samples.jsonl")
    trained = {line["question"] for line in samples if line["became"] == "trained"}
    assert trained == {question["content"] for question, _ in rows}
    sampling = result(job, "prepare")["sampling"]
    assert sampling["questions"] == len(samples)
    assert sampling["asked"] == sum(len(line["tries"]) for line in samples)
    assert sampling["known"] >= 5, "what was answered before the kills"
    assert sum(sampling["rows_by_tries"].values()) == 3
    assert sampling["model"] == "smollm2:135m"
    assert sampling["right"] >= 3


def check_hopeless(http: httpx.Client, adapters_dir: Path) -> None:
    """A base that solves nothing fails the job once, with advice in place of a stack trace."""
    job = done(http, http.post("/jobs", json=HOPELESS).raise_for_status().json()["id"])
    assert job["status"] == "failed"
    error = job["error"]
    assert (error["code"], error["user_fault"], error["attempt"]) == ("bad_data", True, 1)
    assert "solved 0 of 3 questions" in error["message"]
    assert "too few right answers of its own" in error["hint"]
    # one folder: it was not tried again
    (log,) = (adapters_dir / "math" / "runs" / job["id"] / "prepare").glob("a*/stage.log")
    assert error["hint"] in log.read_text()
    assert "Traceback" not in log.read_text()


def write_unsolved(path: Path) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {900_000 + n}"} for n in (2, 3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def program_of(pids: list[int], job_id: str) -> int:
    """The process ID of the job's prepare among those of a `loco up`."""
    (pid,) = (
        pid
        for pid in pids
        if (words := Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"))
        and "loco_worker.prepare" in words
        and any(job_id in word for word in words)
    )
    return pid


def events(http: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    page = http.get(f"/jobs/{job_id}/events", params={"limit": 1000}).raise_for_status().json()
    found: list[dict[str, Any]] = page["data"]
    return found


def wait_for_retry(http: httpx.Client, job_id: str, words: str) -> None:
    """Returns once an attempt of prepare failed in these words and another one is due."""
    deadline = time.monotonic() + 60
    while not any(
        event["type"] == "stage.retry" and words in event["data"]["error"]["message"]
        for event in events(http, job_id)
    ):
        assert time.monotonic() < deadline, events(http, job_id)
        time.sleep(0.2)


def done(http: httpx.Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20 * 60
    while True:
        job: dict[str, Any] = http.get(f"/jobs/{job_id}").raise_for_status().json()
        if job["is_terminal"]:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.5)


def result(job: dict[str, Any], stage: str) -> dict[str, Any]:
    (found,) = (s["result"] for s in job["stages"] if s["stage"] == stage)
    assert isinstance(found, dict)
    return found


def artifact(http: httpx.Client, job: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows of one of prepare's artifacts, as a client downloads it."""
    answer = http.get(f"/jobs/{job['id']}/artifacts/prepare/{name}").raise_for_status()
    return [json.loads(line) for line in answer.text.splitlines()]
