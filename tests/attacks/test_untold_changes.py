"""Somebody changes something, and nobody can say who it was.

Before: promotions named a key; submits, cancels, keys and refused requests left no trace but a log line.
"""

from collections.abc import Iterator

import httpx
import pytest

from loco.contracts.keys import Scope
from loco.ledger import audit

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}


@pytest.fixture
def http(live_api, keys) -> Iterator[httpx.Client]:
    _, key = keys.create("root's desk", scope=Scope.ADMIN, owner="root")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(
        base_url=live_api.url, trust_env=False, timeout=30, headers=headers
    ) as client:
        yield client


def test_every_change_that_is_asked_for_is_recorded(http, keys):
    job = http.post("/jobs", json={**TINY, "metadata": {"note": "secret-note"}}).json()["id"]
    http.post(f"/jobs/{job}/cancel")
    http.post(f"/jobs/{job}/retry")
    http.post(f"/jobs/{job}/replay")
    http.post("/adapters/math/promote", json={"version": 9, "force": True})
    http.post("/adapters/math/rollback")
    made = http.post("/keys", json={"name": "ci"}).json()
    http.delete(f"/keys/{made['id']}")
    http.post("/jobs", json={"adapter": "nope"})
    http.get("/jobs")
    page = http.get("/audit").json()
    assert not page["has_more"]
    told = [(e["action"], e["target"], e["detail"], e["outcome"]) for e in reversed(page["data"])]
    replay = told[3][1]
    assert replay.startswith("/jobs/")
    assert replay != f"/jobs/{job}"
    detail = "ci, submit, of ci"
    assert told == [
        ("submitJob", f"/jobs/{job}", "", "ok"),
        ("cancelJob", f"/jobs/{job}/cancel", "", "ok"),
        ("retryJob", f"/jobs/{job}/retry", "", "ok"),
        ("replayJob", replay, "", "ok"),
        ("createKey", f"/keys/{made['id']}", detail, "ok"),
        ("revokeKey", f"/keys/{made['id']}", detail, "ok"),
    ]
    refused = http.get("/audit?refused=true").json()["data"]
    assert [(e["action"], e["target"], e["detail"], e["status"]) for e in reversed(refused)] == [
        ("promoteVersion", "/adapters/math/promote", "version 9, force", 404),
        ("rollbackVersion", "/adapters/math/rollback", "", 409),
        ("submitJob", "/jobs", "", 404),
    ]
    first = page["data"][-1]
    assert (first["by"], first["owner"], first["address"]) == ("root's desk", "root", "127.0.0.1")
    assert first["key"] == keys.list()[0].id
    assert "secret-note" not in str(page)
    assert made["key"] not in str(page)


def test_what_is_refused_or_changes_nothing_drives_out_nothing(http, keys, monkeypatch):
    """Before: refused changes of a key with scope read, and every plan, stood among what was done."""
    monkeypatch.setattr(audit, "KEPT", 100)
    job = http.post("/jobs", json=TINY).json()["id"]
    _, reader = keys.create("reader", scope=Scope.READ)
    limited = {"Authorization": f"Bearer {reader}"}
    for _ in range(60):
        for method, path in (("PUT", "/jobs"), ("POST", "/jobs"), ("DELETE", "/nothing")):
            assert http.request(method, path, headers=limited).status_code in (403, 404, 405)
    assert http.post("/jobs", json={"adapter": 1}).status_code == 422
    card = {"name": "RTX 3070", "memory_gb": 8}
    assert http.post("/plan", json={"adapter": "math", "device": card}).status_code == 200
    assert http.post("/plan", json={"adapter": "nope"}).status_code == 404
    told = [(e["action"], e["target"]) for e in http.get("/audit").json()["data"]]
    assert told == [("submitJob", f"/jobs/{job}")]
    refused = http.get("/audit?refused=true&limit=1000").json()["data"]
    assert {e["outcome"] for e in refused} == {"refused"}
    assert {e["status"] for e in refused} == {403, 404, 405, 422}
    assert "planJob" not in {e["action"] for e in refused}


def test_the_trail_is_read_page_by_page_and_is_bounded(http, keys, monkeypatch):
    for number in range(5):
        keys.audit.record(action="test", target=f"/{number}", outcome="ok")
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/audit", params={"limit": 2, **after}).json()
        seen += [event["target"] for event in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["data"][-1]["id"]}
    assert seen == ["/4", "/3", "/2", "/1", "/0"]
    for wrong in ("x", "1", "1-2-3", "-", "99999999999999999999-0"):
        assert http.get("/audit", params={"after": wrong}).status_code == 422
    monkeypatch.setattr(audit, "KEPT", 100)
    for _ in range(500):
        keys.audit.record(action="test", target="/", outcome="ok")
    assert len(keys.audit.page(limit=1000)[0]) < 400
    assert keys.audit.page(after="0-0") == ([], False)  # Redis refuses such a range: it was a 500


def test_without_a_key_it_says_local(live_api, keys):
    httpx.post(f"{live_api.url}/jobs/nope/cancel", trust_env=False)
    (event,) = keys.audit.page(refused=True)[0]
    assert (event.by, event.owner, event.key, event.status) == ("local", "local", None, 404)
