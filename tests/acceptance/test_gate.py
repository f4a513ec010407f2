"""The gate on real training: a good adapter is promoted, a ruined one is not, and rollback brings the old one back."""

import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from own_cpus import all_cpus

from loco_worker.sources import arithmetic

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(2400)]

MODEL = "locollm-math-tiny"
SHUFFLED = "shuffled_answers.jsonl"
#: `tiny` with one set of problems, the one that decides. So small a num_predict cuts many of the base's
#: answers, and the gate says so: `unproven` in place of `better`.
GOOD: dict[str, Any] = {
    "adapter": "math",
    "profile": "tiny",
    "eval": {
        "sets": {"benchmark": None, "held_out": {"count": 50}},
        "gate": {"min_problems": 50},
        "num_predict": 64,
    },
}
#: The same recipe on answers that belong to other questions.
RUINED = GOOD | {"prepare": {"source": {"kind": "jsonl", "path": SHUFFLED}, "examples": 96}}


def test_only_what_is_not_worse_serves_and_rollback_answers_with_the_old_model(
    start, adapters_dir: Path
) -> None:
    write_shuffled(adapters_dir / "math" / SHUFFLED)
    # on one CPU the ruined adapter is so near to chance that register's proof fails, before the gate
    with all_cpus():
        up = start().wait_ready()
    ollama = httpx.Client(base_url=up.state()["ollama_host"], timeout=60, trust_env=False)
    with up.http() as http, ollama:
        good = done(http, GOOD)
        gate = result(good, "eval")["gate"]
        assert gate["verdict"] in ("better", "unproven"), gate
        (primary,) = [
            c
            for c in result(good, "eval")["comparisons"]
            if (c["role"], c["against"]) == ("primary", "base")
        ]
        assert primary["candidate"]["correct"] > primary["base"]["correct"]
        served = wait_served(ollama, good["id"])
        answers = asked(ollama)

        ruined = done(http, RUINED)
        assert ruined["status"] == "succeeded", "a refusal is no failure"
        gate = result(ruined, "eval")["gate"]
        assert gate["verdict"] == "refused"
        assert any("worse" in reason for reason in gate["reasons"]), gate
        assert gate["advice"], "a refusal says what to try"
        assert digests(ollama)[f"{MODEL}:latest"] == served, "the old version keeps serving"
        assert digests(ollama)[f"{MODEL}:{ruined['id']}"] != served

        refused = http.post("/adapters/math/promote", json={"version": 2, "reason": "to see"})
        assert refused.status_code == 409
        assert "worse" in refused.json()["error"]["message"]

        forced = http.post(
            "/adapters/math/promote",
            json={"version": 2, "reason": "to see what rollback does", "force": True},
            timeout=60,
        )
        assert forced.status_code == 200, forced.text
        assert digests(ollama)[f"{MODEL}:latest"] == digests(ollama)[f"{MODEL}:{ruined['id']}"]
        assert asked(ollama) != answers

        back = http.post(
            "/adapters/math/rollback", json={"model": MODEL, "reason": "it is bad"}, timeout=60
        )
        assert back.status_code == 200, back.text
        assert back.json()["version"] == 1
        assert digests(ollama)[f"{MODEL}:latest"] == served
        assert asked(ollama) == answers, "the old model answers again"

        versions = http.get("/adapters/math/versions").raise_for_status().json()["data"]
        assert [(v["version"], v["promoted"]) for v in versions] == [(2, False), (1, True)]
        registry = (adapters_dir / "registry.yaml").read_text()
        assert "it is bad" in registry


def write_shuffled(path: Path) -> None:
    """Arithmetic rows whose answers belong to other questions."""
    made = [problem for problem, _ in zip(arithmetic.problems(5), range(240), strict=False)]
    answers = [f"{m.work}\n#### {m.answer}" for m in made]
    random.Random(5).shuffle(answers)
    rows = [{"question": m.question, "answer": a} for m, a in zip(made, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def done(http: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/jobs", json=request)
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 20 * 60
    while True:
        job: dict[str, Any] = http.get(f"/jobs/{answer.json()['id']}").raise_for_status().json()
        if job["is_terminal"]:
            assert job["status"] == "succeeded", job["error"]
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.5)


def result(job: dict[str, Any], stage: str) -> dict[str, Any]:
    (found,) = (s["result"] for s in job["stages"] if s["stage"] == stage)
    assert isinstance(found, dict)
    return found


def digests(ollama: httpx.Client) -> dict[str, str]:
    return {m["name"]: m["digest"] for m in ollama.get("/api/tags").json()["models"]}


def wait_served(ollama: httpx.Client, job_id: str) -> str:
    """The digest of `latest`, once it is that of a job's candidate."""
    deadline = time.monotonic() + 20
    while (now := digests(ollama)).get(f"{MODEL}:latest") != now[f"{MODEL}:{job_id}"]:
        assert time.monotonic() < deadline, now
        time.sleep(0.2)
    return now[f"{MODEL}:latest"]


def asked(ollama: httpx.Client) -> list[str]:
    """What `latest` answers to some questions."""
    said = []
    for question in ("What is 15 + 27?", "Find 20 percent of 50.", "Solve for x: 2x + 5 = 13"):
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "stream": False,
            "think": False,
            "options": {"temperature": 0, "num_predict": 48},
        }
        said.append(str(ollama.post("/api/chat", json=body).json()["message"]["content"]))
    return said
