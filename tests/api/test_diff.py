"""Replays and diffs over HTTP, through the client too."""

import json
from collections.abc import Iterator

import httpx
import pytest

from loco import Client
from loco.contracts.diffs import Sameness
from loco.contracts.errors import Conflict, NotFound
from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny", "stages": ["prepare"]}
ENVIRONMENT = {"python": "3.11.9", "gpu": None, "packages": {"pydantic": "2.11.0"}}


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False) as client:
        yield client


@pytest.fixture
def client(live_api) -> Iterator[Client]:
    with Client(live_api.url) as client:
        yield client


def prepare(hands, rows: bytes = b"{}\n", **environment: object) -> str:
    claim = hands.claim(Stage.PREPARE)
    document = json.dumps({**ENVIRONMENT, **environment}).encode()
    files = {"training_data.jsonl": rows, "environment.json": document}
    hands.commit(claim, {"kept": 1}, files)
    return str(claim.job_id)


def test_a_replay_is_accepted_and_compared(http, hands, adapters_dir):
    first = http.post("/jobs", json=TINY).json()
    prepare(hands)
    (adapters_dir / "math" / "eval_dataset.jsonl").write_text("edited\n")
    answer = http.post(f"/jobs/{first['id']}/replay", headers={"Idempotency-Key": "r"})
    new = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{new['id']}"
    assert new["spec"]["replay_of"] == first["id"]
    assert new["spec"]["inputs"] == first["spec"]["inputs"]
    again = http.post(f"/jobs/{first['id']}/replay", headers={"Idempotency-Key": "r"})
    assert again.json()["id"] == new["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert prepare(hands, python="3.12.1") == new["id"]

    found = http.get(f"/jobs/{first['id']}/diff", params={"with": new["id"]}).json()
    assert (found["object"], found["first"], found["second"]) == ("diff", first["id"], new["id"])
    assert found["verdict"] == "identical"
    assert found["environment"] == [
        {"field": "prepare.python", "first": "3.11.9", "second": "3.12.1"}
    ]
    assert [d["field"] for d in found["recipe"]] == ["eval.gate.policy"]


def test_the_client_says_the_same(client, hands):
    first = client.submit("math", profile="tiny", stages=["prepare"])
    prepare(hands)
    new = client.replay(first.id, promote=True)
    prepare(hands, rows=b"[]\n")
    found = client.diff(first.id, new.id)
    assert found.verdict is Sameness.DIFFERENT
    assert [d.field for d in found.data] == ["prepare/training_data.jsonl"]
    assert found.recipe == ()


def test_what_cannot_be_replayed_or_compared(client, http, adapters_dir):
    first = client.submit("math", profile="tiny", stages=["prepare"])
    with pytest.raises(NotFound):
        client.replay("nope")
    with pytest.raises(NotFound) as caught:
        client.diff(first.id, "nope")
    assert caught.value.param == "with"
    assert http.get(f"/jobs/{first.id}/diff").json()["error"]["param"] == "with"
    refused = http.post(f"/jobs/{first.id}/replay", json={"train": {}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "train")
    (adapters_dir / first.spec.inputs["eval_dataset.jsonl"].path).unlink()
    with pytest.raises(Conflict, match=r"eval_dataset\.jsonl"):
        client.replay(first.id)
