"""Sweeps over HTTP: accepted, listed, shown with their ranks, cancelled; and what is refused."""

import json
from typing import Any

import httpx
import pytest

from loco.contracts.stages import Stage
from loco.queue.sweeps import advance

pytestmark = pytest.mark.redis

RATES: dict[str, Any] = {
    "adapter": "math",
    "profile": "tiny",
    "grid": {"train.learning_rate": [1e-4, 2e-4]},
}


@pytest.fixture
def http(live_api):
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as client:
        yield client


def test_a_sweep_from_its_request_to_its_table(http, ledger, hands):
    answer = http.post("/sweeps", json={**RATES, "metadata": {"who": "me"}})
    assert answer.status_code == 202
    sweep = answer.json()
    assert answer.headers["Location"] == f"/sweeps/{sweep['id']}"
    assert (sweep["object"], sweep["status"], sweep["is_terminal"]) == ("sweep", "running", False)
    assert http.get(f"/jobs/{sweep['prepare_job']}").json()["spec"]["sweep"] == sweep["id"]
    hands.commit(hands.claim(Stage.PREPARE), {})
    advance(ledger, sweep["id"])
    for loss in (0.7, 0.5):
        measured = {"validation_loss": loss, "last_loss": 0.4, "total_steps": 20}
        hands.commit(hands.claim(Stage.TRAIN), measured)
    shown = http.get(f"/sweeps/{sweep['id']}").json()
    assert [(p["overrides"], p["rank"], p["validation_loss"]) for p in shown["points"]] == [
        ({"train.learning_rate": 1e-4}, 2, 0.7),
        ({"train.learning_rate": 2e-4}, 1, 0.5),
    ]
    [listed] = http.get("/sweeps").json()["data"]
    assert (listed["id"], listed["size"], listed["metadata"]) == (sweep["id"], 2, {"who": "me"})
    assert "points" not in listed


def test_the_same_key_is_the_same_sweep(http):
    headers = {"Idempotency-Key": "k"}
    first = http.post("/sweeps", json=RATES, headers=headers)
    again = http.post("/sweeps", json=RATES, headers=headers)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    other = http.post("/sweeps", json={**RATES, "seeds": 2}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert http.post("/jobs", json={"adapter": "math"}, headers=headers).status_code == 202
    assert http.post("/sweeps", json=RATES, headers={"Idempotency-Key": ""}).status_code == 422


def test_cancel_ends_it_and_its_jobs(http):
    sweep = http.post("/sweeps", json=RATES).json()
    ended = http.post(f"/sweeps/{sweep['id']}/cancel").json()
    assert (ended["status"], ended["is_terminal"]) == ("cancelled", True)
    assert http.get(f"/jobs/{sweep['prepare_job']}").json()["status"] == "cancelled"
    assert http.post(f"/sweeps/{sweep['id']}/cancel").json()["status"] == "cancelled"


def test_pages(http):
    made = [http.post("/sweeps", json=RATES).json()["id"] for _ in range(3)]
    page = http.get("/sweeps", params={"limit": 2}).json()
    assert ([s["id"] for s in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    page = http.get("/sweeps", params={"after": made[1]}).json()
    assert ([s["id"] for s in page["data"]], page["has_more"]) == ([made[0]], False)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"grid": {"train.learning_rate": [1e-4, 7]}}, "train.learning_rate"),
        ({"grid": {"train.epochs": [*range(1, 65)]}, "seeds": 2}, "grid"),
        ({"grid": {"train.epochs": [*range(1, 70)]}}, "grid.train.epochs"),
        ({"grid": {"prepare.examples": [1, 2]}}, "prepare.examples"),
        ({"grid": {"train.lora": [{"r": float("inf")}, {}]}}, "grid"),
        ({"seeds": 0}, "seeds"),
        ({"stages": ["train"]}, "stages"),
        ({"rank_by": "luck"}, "rank_by"),
        ({"adapter": "nope"}, "adapter"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(http, changes, param):
    body = json.dumps(RATES | changes)  # httpx would not write Infinity
    answer = http.post("/sweeps", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == (404 if param == "adapter" else 422), answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert error["hint"]
    assert http.get("/sweeps").json()["data"] == []
    assert http.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("path", ["/sweeps/sweep-0", "/sweeps/sweep-0/cancel", "/sweeps/%00"])
def test_a_sweep_that_is_not_there(http, path):
    answer = http.post(path) if path.endswith("cancel") else http.get(path)
    assert answer.status_code == 404
    assert "loco sweeps" in answer.json()["error"]["hint"]
