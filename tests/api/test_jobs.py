"""Jobs over HTTP: accepting, listing, cancelling, retrying, and refusing what makes no sense."""

import time
from collections.abc import Iterator

import httpx
import pytest
import redis

from loco.contracts.errors import RedisUnavailable
from loco.contracts.jobs import StageStatus
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Ledger, broker_prefix
from loco.settings import Timings
from loco_api import jobs as jobs_of_api

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False) as client:
        yield client


def hints(live_api, queue: str) -> int:
    """Messages that wait for a worker of the queue."""
    settings = live_api.settings
    with redis.Redis.from_url(settings.redis_url) as client:
        return client.llen(broker_prefix(settings.namespace) + queue)


def error(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "param", "hint"}
    return body["error"]


def test_a_job_is_accepted_before_any_work_and_can_be_polled(http, live_api):
    answer = http.post("/jobs", json={**TINY, "metadata": {"for": "test"}, "priority": 5})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert (job["status"], job["is_terminal"], job["priority"]) == ("queued", False, 5)
    assert job["spec"]["register"]["model_name"] == "locollm-math-tiny"
    assert http.get(answer.headers["Location"]).json() == job
    assert [s["stage"] for s in job["stages"]] == list(Stage)
    task = http.get(f"/tasks/{job['stages'][0]['task_id']}").json()
    assert task == job["stages"][0]
    assert task["status"] == "queued"
    assert hints(live_api, "cpu") == 1


def test_progress_result_and_failure_show_up_in_job_and_task(http, hands):
    job = http.post("/jobs", json=TINY).json()
    claim = hands.claim(Stage.PREPARE)
    hands.progress(claim, percent=40, message="reading")
    task = http.get(f"/tasks/{job['id']}-prepare").json()
    assert (task["status"], task["progress"]["percent"], task["worker"]) == ("running", 40, "hands")
    hands.commit(claim, {"kept": 7}, {"training_data.jsonl": b"{}\n"})
    claim = hands.claim(Stage.TRAIN)
    hands.fail(claim, "loss is NaN", hint="lower the learning rate")
    job = http.get(f"/jobs/{job['id']}").json()
    assert (job["status"], job["is_terminal"]) == ("failed", True)
    assert job["stages"][0]["result"]["kept"] == 7
    assert job["stages"][0]["artifacts"][0]["name"] == "training_data.jsonl"
    assert job["error"]["stage"] == "train"
    assert job["error"]["hint"] == "lower the learning rate"


def test_the_same_key_gives_the_same_job_and_another_body_a_conflict(http):
    headers = {"Idempotency-Key": "nightly"}
    first = http.post("/jobs", json=TINY, headers=headers)
    again = http.post("/jobs", json=TINY, headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    body = error(http.post("/jobs", json={**TINY, "seed": 1}, headers=headers), 409)
    assert (body["code"], body["param"]) == ("idempotency_conflict", "Idempotency-Key")
    assert len(http.get("/jobs").json()["data"]) == 1
    error(http.post("/jobs", json=TINY, headers={"Idempotency-Key": "k" * 256}), 422)


def test_pages_of_jobs_with_filters(http, hands):
    ids = [http.post("/jobs", json=TINY).json()["id"] for _ in range(5)]
    http.post(f"/jobs/{ids[0]}/cancel")
    page = http.get("/jobs", params={"limit": 3}).json()
    assert (page["object"], page["has_more"]) == ("list", True)
    assert [job["id"] for job in page["data"]] == ids[:1:-1]
    rest = http.get("/jobs", params={"limit": 3, "after": page["data"][-1]["id"]}).json()
    assert [job["id"] for job in rest["data"]] == ids[1::-1]
    assert not rest["has_more"]
    cancelled = http.get("/jobs", params={"status": "cancelled", "adapter": "math"}).json()
    assert [job["id"] for job in cancelled["data"]] == ids[:1]
    assert http.get("/jobs", params={"adapter": "other"}).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("status=done", "status"),
        ("after=nothing", "after"),
    ],
)
def test_wrong_queries_name_the_parameter(http, query, param):
    assert error(http.get(f"/jobs?{query}"), 422)["param"] == param


def test_cancel_and_retry(http, live_api, hands):
    job_id = http.post("/jobs", json=TINY).json()["id"]
    assert error(http.post(f"/jobs/{job_id}/retry"), 409)["code"] == "conflict"
    assert http.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert http.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    before = hints(live_api, "cpu")
    assert http.post(f"/jobs/{job_id}/retry").json()["status"] == "queued"
    assert hints(live_api, "cpu") == before + 1
    hands.claim(Stage.PREPARE)
    asked = http.post(f"/jobs/{job_id}/cancel").json()
    assert (asked["status"], asked["cancel_requested"]) == ("running", True)


@pytest.mark.parametrize(
    "path", ["/jobs/none", "/jobs/none/events", "/jobs/none/artifacts", "/jobs/none/artifacts/x"]
)
def test_unknown_jobs_are_not_found(http, path):
    assert error(http.get(path), 404)["code"] == "not_found"


def test_unknown_tasks_actions_and_routes_are_not_found(http):
    error(http.get("/tasks/none-train"), 404)
    error(http.post("/jobs/none/cancel"), 404)
    error(http.post("/jobs/none/retry"), 404)
    assert "GET /openapi.json" in str(error(http.get("/job"), 404)["hint"])
    error(http.get("/jobs/"), 404)


def test_a_wrong_method_says_the_right_ones(http):
    answer = http.put("/jobs", json=TINY)
    assert error(answer, 405)["hint"] == "Use GET, POST."
    assert answer.headers["Allow"] == "GET, POST"


def test_a_body_must_be_declared_as_json(http):
    """A web page can send anything else without asking the browser first."""
    answer = http.post(
        "/jobs", content=b'{"adapter": "math"}', headers={"Content-Type": "text/plain"}
    )
    assert "application/json" in str(error(answer, 422)["hint"])


def test_a_large_body_is_refused_with_and_without_a_declared_length(http):
    headers = {"Content-Type": "application/json"}
    declared = http.post("/jobs", content=b" " * (1 << 20) + b"{}", headers=headers)
    assert error(declared, 413)["code"] == "body_too_large"
    parts = (b" " * 65536 for _ in range(20))
    assert (
        error(http.post("/jobs", content=parts, headers=headers), 413)["code"] == "body_too_large"
    )


def test_the_api_reaps(live_api, redis_url, namespace, adapters_dir, http):
    """A stage whose worker fell silent is queued again though no worker runs a reaper."""
    live_api.stop()
    timings = Timings(reap=0.1, lease=0.2)
    live_api.settings = live_api.settings.model_copy(update={"timings": timings})
    live_api.start()
    ledger = Ledger.connect(redis_url, namespace=namespace, timings=timings)
    job_id = http.post("/jobs", json=TINY).json()["id"]
    assert ledger.claim(Queue.CPU, worker_id="silent", nonce="n")
    deadline = time.monotonic() + 10
    while ledger.job(job_id).stages[0].crashes == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ledger.job(job_id).stages[0].status is StageStatus.QUEUED
    ledger.close()


def test_a_line_that_cannot_be_read_costs_no_accepted_job(http, monkeypatch):
    """Before: 503 for a job that was accepted, and a client without a key sent it twice."""

    def fails(*_: object) -> None:
        raise RedisUnavailable("It hangs.")

    monkeypatch.setattr(jobs_of_api, "waiting", fails)
    answer = http.post("/jobs", json={"adapter": "math", "profile": "tiny"})
    assert answer.status_code == 202
    assert http.get(f"/jobs/{answer.json()['id']}").json()["waiting"] is None
