"""A whole job that exports its adapter alone: served on a shared base, proven, measured, promoted, restored."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(2400)]

JOB: dict[str, Any] = {
    "adapter": "math",
    "profile": "tiny",
    "prepare": {"examples": 64},
    "export": {"format": "adapter"},
    "eval": {"limit": 2, "num_predict": 32, "sets": {"held_out": {"count": 2}}},
}


def test_an_adapter_alone_is_built_served_promoted_and_restored(start, adapters_dir: Path) -> None:
    up = start().wait_ready()
    models = up.data_dir / "models"
    with up.http() as http, httpx.Client(base_url=up.state()["ollama_host"], timeout=60) as ollama:
        job = finished(http, JOB)
        assert job["status"] == "succeeded", job["error"]
        results = {s["stage"]: s["result"] for s in job["stages"]}
        exported, registered = results["export"], results["register"]
        base = exported["served_base"]
        assert (exported["format"], exported["gguf"]) == ("adapter", "gguf/adapter.gguf")
        assert (models / base["path"]).stat().st_size == base["size"]
        # what a version costs on disk, beside the base that all of them share
        assert exported["size"] < 12e6 < base["size"]
        folder = adapters_dir / "math/served/locollm-math-tiny"
        assert (folder / "gguf" / "adapter.gguf").stat().st_size == exported["size"]
        assert (
            f"FROM {base['model']}\nADAPTER ./gguf/adapter.gguf\n"
            in (folder / "Modelfile").read_text()
        )

        checks = {c["name"]: c["passed"] for c in registered["checks"]}
        assert set(checks.values()) == {True}, registered["checks"]
        assert checks.keys() >= {"adapters", "digest_new", "rendered_prompt", "greedy_answers"}
        assert results["eval"]["gate"]["verdict"] == "unproven", "two problems prove nothing"
        latest = "locollm-math-tiny:latest"
        up.wait_for(lambda: latest in listed(ollama))  # the workers follow the ledger
        digests = listed(ollama)
        assert digests[latest] == digests[registered["candidate"]]

        (version,) = http.get("/adapters/math/versions").json()["data"]
        assert (version["format"], version["base"]) == ("adapter", base)
        assert version["base_digest"] == digests[base["model"]]

        # an emptied server: the base comes from where export keeps it
        for name in digests:
            ollama.request("DELETE", "/api/delete", json={"model": name}).raise_for_status()
        restore = f"/adapters/math/versions/{version['version']}/restore"
        answer = http.post(restore, json={}, timeout=120)
        assert answer.status_code == 200, answer.text
        assert listed(ollama)[latest] == answer.json()["digest"]
        assert base["model"] in listed(ollama)

        # neither there nor kept: it says how to get it
        for name in listed(ollama):
            ollama.request("DELETE", "/api/delete", json={"model": name}).raise_for_status()
        (models / base["path"]).unlink()
        answer = http.post(restore, json={}, timeout=120)
        assert answer.status_code == 409
        error = answer.json()["error"]
        assert (error["code"], base["model"] in error["message"]) == ("candidate_missing", True)
        assert "--no-reuse" in error["hint"]


def finished(http: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/jobs", json=request)
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 1200
    while True:
        job: dict[str, Any] = http.get(f"/jobs/{answer.json()['id']}").raise_for_status().json()
        if job["is_terminal"]:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.5)


def listed(ollama: httpx.Client) -> dict[str, str]:
    models = ollama.get("/api/tags").raise_for_status().json()["models"]
    return {m["name"]: m["digest"] for m in models}
