"""The recipes beside math, the whole pipeline each: the same services, another task and grader."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(2400)]

#: `tiny`, smaller: three steps, two problems a set.
SMALL: dict[str, Any] = {
    "profile": "tiny",
    "prepare": {"examples": 24, "validation": 4},
    "register": {"num_predict": 32},
    "eval": {"limit": 2, "num_predict": 32},
}


def built(http: httpx.Client, adapter: str) -> dict[str, Any]:
    answer = http.post("/jobs", json=SMALL | {"adapter": adapter})
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 1200
    while not (job := http.get(f"/jobs/{answer.json()['id']}").json())["is_terminal"]:
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    assert job["status"] == "succeeded", job["error"]
    return {stage["stage"]: stage["result"] for stage in job["stages"]}


def test_code_and_analysis_run_from_rows_to_a_verdict(start, adapters_dir: Path) -> None:
    up = start().wait_ready()
    with up.http() as http:
        for adapter in ("code", "analysis"):
            results = built(http, adapter)
            assert results["prepare"]["kept"] == 24
            assert results["train"]["total_steps"] == 3
            assert results["train"]["last_loss"] < results["train"]["first_loss"]
            checks = results["register"]["checks"]
            assert {c["name"]: c["seen"] for c in checks if not c["passed"]} == {}
            sets = {c["set"]: c for c in results["eval"]["comparisons"]}
            assert {name: c["candidate"]["total"] for name, c in sets.items()} == {
                "benchmark": 2,
                "held_out": 2,
            }
            assert results["eval"]["gate"]["verdict"] == "unproven", "two problems prove nothing"
            served = adapters_dir / adapter / "served" / f"locollm-{adapter}-tiny"
            assert (served / "gguf" / "unsloth.Q4_K_M.gguf").is_file()
