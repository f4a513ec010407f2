"""The recipes beside math, the whole pipeline each: the same services, another task and grader."""

import json
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


#: Without an eval set.
TOWNS = """
name: towns
description: Towns.
base_model: smollm2-135m-instruct
model_name: locollm-towns
prepare: {source: {kind: jsonl, path: rows.jsonl}}
# enough passes that no answer hangs on a near tie, which register would take for another model's
train: {epochs: 6, batch_size: 8, gradient_accumulation: 1, max_length: 128, learning_rate: 1.0e-3}
profiles: {tiny: {eval: {baselines: [base, promoted]}}}
"""


def built(http: httpx.Client, adapter: str) -> dict[str, Any]:
    answer = http.post("/jobs", json=SMALL | {"adapter": adapter})
    assert answer.status_code == 202, answer.text
    return ended(http, answer.json()["id"])


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """The results of a job's stages, once it has succeeded."""
    deadline = time.monotonic() + 1200
    while not (job := http.get(f"/jobs/{job_id}").json())["is_terminal"]:
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


def test_a_recipe_without_an_eval_set_is_measured_on_rows_held_back(
    start, adapters_dir: Path
) -> None:
    folder = adapters_dir / "towns"
    folder.mkdir()
    (folder / "adapter.yaml").write_text(TOWNS)
    lines = [
        {"question": f"In which town does person {n} live?", "answer": f"Lisbon {n}"}
        for n in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    up = start().wait_ready()
    with up.http() as http:
        results = built(http, "towns")
        held = results["prepare"]["held_back"]
        assert (held["set"], held["rows"], held["grader"]) == ("split", 20, "words")
        (job,) = http.get("/jobs").json()["data"]
        paths = f"/jobs/{job['id']}/artifacts"
        files = {
            name: [
                json.loads(line) for line in http.get(f"{paths}/prepare/{name}").text.splitlines()
            ]
            for name in ("training_data.jsonl", "validation_data.jsonl", "eval_sets/split.jsonl")
        }
        asked = [
            {row["conversations"][0]["content"] for row in files.pop(name)}
            for name in ("training_data.jsonl", "validation_data.jsonl")
        ]
        problems = {row["question"] for row in files["eval_sets/split.jsonl"]}
        assert [len(rows) for rows in (*asked, problems)] == [24, 4, 20]
        assert not problems & (asked[0] | asked[1])
        (comparison,) = results["eval"]["comparisons"]
        assert (comparison["set"], comparison["role"]) == ("split", "primary")
        assert comparison["candidate"]["total"] == comparison["base"]["total"] == 2
        assert results["eval"]["contaminated"] == {"split": 0}
        # the same rows, whatever the seed of the job; one stage again reads what was held back
        again = {"adapter": "towns", "profile": "tiny", "stages": ["eval"], "eval": {"limit": 3}}
        one = http.post("/jobs", json=again | {"from_job": job["id"]}).json()
        measured = ended(http, one["id"])["eval"]["comparisons"][0]
        assert measured["candidate"]["total"] == 3
        told = {"adapter": "towns", "profile": "tiny", "stages": ["prepare"], "seed": 7}
        other = http.post("/jobs", json=told).json()
        ended(http, other["id"])
        split = http.get(f"/jobs/{other['id']}/artifacts/prepare/eval_sets/split.jsonl").text
        assert {json.loads(line)["question"] for line in split.splitlines()} == problems
