"""A route that somebody forgot to lock (CVE-2026-0545), or that asks for less than it should.

Before: a route locked itself by a dependency, so one added without it was open, and every key opened
everything.
"""

from collections.abc import Callable, Iterator

import httpx
import pytest

from loco.contracts.keys import Scope
from loco_api.__main__ import build
from loco_api.app import create_app
from loco_api.auth import OPEN

pytestmark = pytest.mark.redis

#: What a key with scope read may not, and the scope it needs.
CHANGES = {
    ("post", "/jobs"): Scope.SUBMIT,
    ("post", "/plan"): Scope.SUBMIT,
    ("post", "/sweeps"): Scope.SUBMIT,
    ("post", "/sweeps/{sweep_id}/cancel"): Scope.SUBMIT,
    ("post", "/jobs/{job_id}/cancel"): Scope.SUBMIT,
    ("post", "/jobs/{job_id}/retry"): Scope.SUBMIT,
    ("delete", "/jobs/{job_id}"): Scope.SUBMIT,
    ("post", "/jobs/{job_id}/replay"): Scope.SUBMIT,
    ("post", "/datasets"): Scope.SUBMIT,
    ("patch", "/datasets/{dataset_id}"): Scope.SUBMIT,
    ("delete", "/datasets/{dataset_id}"): Scope.SUBMIT,
    ("put", "/adapters/{name}"): Scope.ADMIN,
    ("delete", "/adapters/{name}"): Scope.ADMIN,
    ("delete", "/adapters/{name}/versions/{version}"): Scope.SUBMIT,
    ("post", "/looks"): Scope.SUBMIT,
    ("post", "/adapters/{name}/promote"): Scope.SUBMIT,
    ("post", "/adapters/{name}/rollback"): Scope.SUBMIT,
    ("post", "/adapters/{name}/versions/{version}/restore"): Scope.SUBMIT,
    ("post", "/v1/files"): Scope.SUBMIT,
    ("delete", "/v1/files/{file_id}"): Scope.SUBMIT,
    ("post", "/v1/fine_tuning/jobs"): Scope.SUBMIT,
    ("post", "/v1/fine_tuning/jobs/{job_id}/cancel"): Scope.SUBMIT,
    ("post", "/v1/fine_tuning/jobs/{job_id}/pause"): Scope.SUBMIT,
    ("post", "/v1/fine_tuning/jobs/{job_id}/resume"): Scope.SUBMIT,
    ("delete", "/v1/models/{model}"): Scope.SUBMIT,
    ("post", "/v1/chat/completions"): Scope.SUBMIT,
    ("post", "/v1/embeddings"): Scope.SUBMIT,
    ("get", "/keys"): Scope.ADMIN,
    ("post", "/keys"): Scope.ADMIN,
    ("delete", "/keys/{key_id}"): Scope.ADMIN,
    ("get", "/audit"): Scope.ADMIN,
}


@pytest.fixture
def bearer(keys) -> Callable[[Scope], dict[str, str]]:
    return lambda scope: {
        "Authorization": f"Bearer {keys.create(scope.value, scope=scope, owner='anna')[1]}"
    }


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def routes(live_settings) -> list[tuple[str, str, list[str]]]:
    """Method, path and needed scopes of every route that is not open, as served and documented."""
    paths = create_app(build(live_settings)).openapi()["paths"]
    found = [
        (method, path, operation.get("security", [{"apiKey": []}])[0]["apiKey"])
        for path, operations in paths.items()
        for method, operation in operations.items()
        if path not in OPEN
    ]
    assert len(found) > 20
    return found


def test_every_route_says_which_scope_it_needs(routes):
    for method, path, scopes in routes:
        needed = CHANGES.get((method, path), Scope.READ)
        assert scopes, f"{method} {path} names no scope"
        assert max(scopes, key=list(Scope).index) == needed, f"{method} {path}"
        assert method in ("get", "head") or needed is not Scope.READ


def test_every_path_asks_for_a_key_also_one_without_a_route(http, keys, routes):
    keys.create("laptop")
    unknown = [("get", "/nothing"), ("post", "/nothing"), ("get", "/metrics"), ("get", "//jobs")]
    for method, path in [(m, p) for m, p, _ in routes] + unknown:
        answer = http.request(method, path.replace("{", "x").replace("}", ""), json={})
        assert answer.status_code == 401, f"{method} {path}"
    for trick in ("/healthz/../jobs", "/healthz;/jobs", "/%68ealthz/jobs", "/jobs?x=/healthz"):
        assert http.get(trick).status_code == 401, trick
    for method in ("HEAD", "OPTIONS", "PUT", "TRACE"):
        assert http.request(method, "/jobs").status_code == 401, method


def test_a_key_does_what_its_scope_allows_and_nothing_beyond(http, bearer, routes):
    headers = {scope: bearer(scope) for scope in Scope}
    for method, path, scopes in routes:
        needed = max(map(Scope, scopes), key=list(Scope).index)
        url = path.replace("{version}", "1").replace("{", "x").replace("}", "")
        for scope in Scope:
            answer = http.request(method, url, headers=headers[scope], json={})
            let_in = scope.includes(needed)
            assert (answer.status_code == 403) != let_in, f"{scope} {method} {path}"
            assert answer.status_code != 401


def test_force_overrules_the_gate_and_takes_an_admin(http, bearer):
    told = http.post(
        "/adapters/math/promote", headers=bearer(Scope.SUBMIT), json={"version": 1, "force": True}
    )
    assert told.status_code == 403
    assert "scope admin (force overrules the gate)" in told.json()["error"]["message"]
    told = http.post(
        "/adapters/math/promote", headers=bearer(Scope.ADMIN), json={"version": 1, "force": True}
    )
    assert told.json()["error"]["message"] == "Adapter math has no version 1."


def test_an_expired_key_opens_nothing(http, keys, redis_url, namespace):
    _, key = keys.create("laptop")
    bearer = {"Authorization": f"Bearer {key}"}
    assert http.get("/jobs", headers=bearer).status_code == 200
    with keys._connection.client() as client:
        ((digest, record),) = client.hgetall(f"{namespace}:keys").items()
        over = record.replace('"expires_at":null', '"expires_at":"2020-01-01T00:00:00Z"')
        assert over != record
        client.hset(f"{namespace}:keys", digest, over)
    assert http.get("/jobs", headers=bearer).status_code == 401
    assert http.get("/jobs").status_code == 401, "the server stays closed"


def test_keys_over_http_are_an_admins_and_the_first_is_made_on_the_machine(http, keys, bearer):
    refused = http.post("/keys", json={"name": "mine"})
    assert refused.status_code == 403
    assert "loco keys create" in refused.json()["error"]["hint"]
    assert not keys.any()
    admin = bearer(Scope.ADMIN)
    made = http.post("/keys", headers=admin, json={"name": "ci", "owner": "ben", "expires": "90d"})
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    info = made.json()
    assert (info["owner"], info["scope"]) == ("ben", "submit")
    assert http.get("/jobs", headers={"Authorization": f"Bearer {info['key']}"}).status_code == 200
    listed = http.get("/keys", headers=admin)
    assert info["key"] not in listed.text
    assert [key["name"] for key in listed.json()["data"]] == ["admin", "ci"]
    assert http.delete(f"/keys/{info['id']}", headers=admin).json()["name"] == "ci"
    assert http.get("/jobs", headers={"Authorization": f"Bearer {info['key']}"}).status_code == 401
    assert http.delete(f"/keys/{info['id']}", headers=admin).status_code == 404
    for wrong in ({"expires": "soon"}, {"name": "a\x1b[2J"}, {"scope": "root"}, {"name": ""}):
        answer = http.post("/keys", headers=admin, json={"name": "x", **wrong})
        assert answer.status_code == 422, wrong
        assert answer.json()["error"]["param"] in wrong
