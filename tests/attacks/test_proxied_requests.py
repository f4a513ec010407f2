"""A reverse proxy in front of a server without keys lets the world in, or lies about who asks.

Before: a proxy that rewrites Host made every request look local, X-Forwarded-For of any local program
was believed, and a page of another site could at least send plain GETs.
"""

import httpx
import pytest

from loco.contracts.keys import Scope
from loco.ledger.keys import Keys

pytestmark = pytest.mark.redis

PROXIED = {
    "Forwarded": "for=192.0.2.7",
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Host": "box.example",
    "X-Forwarded-Proto": "https",
    "X-Real-IP": "192.0.2.7",
    "Via": "1.1 proxy",
    "CF-Connecting-IP": "192.0.2.7",
    "True-Client-IP": "192.0.2.7",
}


@pytest.mark.parametrize("name", PROXIED)
def test_without_a_key_what_a_proxy_passes_on_is_refused(live_api, name):
    told = httpx.get(f"{live_api.url}/jobs", headers={name: PROXIED[name]}, trust_env=False)
    assert told.status_code == 403
    assert told.json()["error"]["param"].lower() == name.lower()
    assert "loco keys create" in told.json()["error"]["hint"]


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-origin", 200), ("same-site", 200), ("none", 200)],
)
def test_without_a_key_pages_of_other_sites_are_refused(live_api, site, status):
    headers = {"Sec-Fetch-Site": site}
    assert httpx.get(f"{live_api.url}/jobs", headers=headers, trust_env=False).status_code == status


def seen_address(url: str, keys: Keys, headers: dict[str, str]) -> str | None:
    """The address the audit trail has of a request."""
    _, key = keys.create("laptop", scope=Scope.ADMIN)
    bearer = {"Authorization": f"Bearer {key}", **headers}
    answer = httpx.post(f"{url}/jobs/nope/cancel", headers=bearer, trust_env=False)
    assert answer.status_code == 404
    return keys.audit.page(refused=True, limit=1)[0][0].address


def test_with_a_key_a_proxy_is_served_but_not_believed(live_api, keys):
    assert seen_address(live_api.url, keys, PROXIED) == "127.0.0.1"


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [("127.0.0.1", "192.0.2.7"), ("10.0.0.0/8, 127.0.0.0/8", "192.0.2.7"), ("10.1.2.3", None)],
)
def test_a_configured_proxy_is_believed(live_api, keys, trusted, seen):
    live_api.stop()
    given = type(live_api.settings).from_environment({"LOCO_TRUSTED_PROXIES": trusted})
    live_api.settings = live_api.settings.model_copy(
        update={"trusted_proxies": given.trusted_proxies}
    )
    live_api.start()
    # what stands left of the address the proxy added is whatever the client claimed
    headers = {"X-Forwarded-For": "203.0.113.9, 192.0.2.7"}
    assert seen_address(live_api.url, keys, headers) == (seen or "127.0.0.1")
