"""One user changes what is another's (CVE-2026-2651).

Before: any key cancelled any job, and two students' idempotency key `nightly-1` was one: the second
got the first one's job, or a 409.
"""

import httpx
import pytest

from loco.contracts.errors import InvalidRequest
from loco.contracts.keys import Scope

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}


def test_a_job_is_changed_by_its_owner_and_admins_alone(login):
    anna, ben, root = login("anna"), login("ben"), login("root", Scope.ADMIN)
    job = anna.post("/jobs", json=TINY).json()
    assert job["owner"] == "anna"
    assert ben.get(f"/jobs/{job['id']}").json()["owner"] == "anna", "everybody sees all jobs"
    for action in ("cancel", "retry"):
        told = ben.post(f"/jobs/{job['id']}/{action}")
        assert told.status_code == 403
        assert "is 'anna''s; this key belongs to 'ben'" in told.json()["error"]["message"]
    assert anna.get(f"/jobs/{job['id']}").json()["status"] == "queued"
    assert login("anna").post(f"/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    assert root.post(f"/jobs/{job['id']}/retry").json()["status"] == "queued"
    again = ben.post(f"/jobs/{job['id']}/replay").json()
    assert again["owner"] == "ben", "a replay is a job of who asked for it"
    assert ben.post("/jobs/nope/cancel").status_code == 404


def test_a_sweep_is_cancelled_by_its_owner_and_admins_alone(login):
    anna, ben, root = login("anna"), login("ben"), login("root", Scope.ADMIN)
    sweep = anna.post("/sweeps", json={**TINY, "grid": {"train.epochs": [1, 2]}}).json()
    assert sweep["owner"] == "anna"
    assert ben.get(f"/jobs/{sweep['prepare_job']}").json()["owner"] == "anna"
    told = ben.post(f"/sweeps/{sweep['id']}/cancel")
    assert told.status_code == 403
    assert "is 'anna''s; this key belongs to 'ben'" in told.json()["error"]["message"]
    assert login("reader", Scope.READ).post(f"/sweeps/{sweep['id']}/cancel").status_code == 403
    assert ben.get(f"/sweeps/{sweep['id']}").json()["status"] == "running"
    assert root.post(f"/sweeps/{sweep['id']}/cancel").json()["status"] == "cancelled"


def test_jobs_without_an_owner_are_an_admins(live_api, login, ledger, spec, namespace):
    """Those of the time before there were keys, and of releases that knew no owners."""
    with httpx.Client(base_url=live_api.url, trust_env=False) as local:
        before = local.post("/jobs", json=TINY).json()
    assert before["owner"] == "local"
    older, _ = ledger.submit(spec())
    with ledger._connection.client() as client:
        client.hdel(f"{namespace}:job:{older.id}", "owner")
    assert ledger.job(older.id).owner is None
    anna, root = login("anna"), login("root", Scope.ADMIN)
    for job_id, fix in ((before["id"], "create NAME --owner local"), (older.id, "admin key")):
        refused = anna.post(f"/jobs/{job_id}/cancel")
        assert refused.status_code == 403
        assert fix in refused.json()["error"]["hint"]
        assert root.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def test_a_key_that_is_only_called_local_takes_nothing_over(keys, login):
    """Before: `loco keys create local` made a key that owned what ran before there were keys."""
    with pytest.raises(InvalidRequest, match="--owner") as caught:
        keys.create("local")
    assert caught.value.param == "owner"
    assert keys.list() == []
    told = login("root", Scope.ADMIN).post("/keys", json={"name": "local"})
    assert (told.status_code, told.json()["error"]["param"]) == (422, "owner")
    assert keys.create("local", owner="anna")[0].owner == "anna"
    assert keys.create("desk", owner="local")[0].owner == "local"


def test_two_owners_idempotency_keys_are_two(login):
    same = {"Idempotency-Key": "nightly-1"}
    anna, ben = login("anna"), login("ben")
    first = anna.post("/jobs", json=TINY, headers=same)
    other = ben.post("/jobs", json={**TINY, "seed": 7}, headers=same)
    assert (first.status_code, other.status_code) == (202, 202)
    assert first.json()["id"] != other.json()["id"]
    assert anna.post("/jobs", json=TINY, headers=same).json()["id"] == first.json()["id"]
    again = login("anna").post("/jobs", json=TINY, headers=same)
    assert again.headers["Idempotency-Replayed"] == "true", "of the same owner, another key"
    assert anna.post("/jobs", json={**TINY, "seed": 7}, headers=same).status_code == 409


@pytest.mark.parametrize(
    ("one", "other"), [(("a", "b:c"), ("a:b", "c")), (("local", '["a", "b"]'), ("a", "b"))]
)
def test_no_owner_and_key_read_as_another_owners(ledger, spec, one, other):
    first, _ = ledger.submit(spec(), idempotency_key=one[1], request_digest="d", owner=one[0])
    second, created = ledger.submit(
        spec(), idempotency_key=other[1], request_digest="d", owner=other[0]
    )
    assert created
    assert first.id != second.id


def test_keys_recorded_before_there_were_owners_still_work_without_a_key(ledger, spec, namespace):
    old, _ = ledger.submit(spec())
    with ledger._connection.client() as client:
        client.hset(f"{namespace}:idem:key:nightly-1", mapping={"job": old.id, "digest": "d"})
    known = ledger.accepted("nightly-1", "d")
    assert known is not None
    assert known.id == old.id
    assert ledger.accepted("nightly-1", "d", owner="anna") is None
