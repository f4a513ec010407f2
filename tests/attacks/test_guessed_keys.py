"""Guessing keys, and one key that takes the whole machine.

Before: nothing counted; a loop of wrong keys, or of plans with a good one, ran as fast as it could.
"""

from collections.abc import Callable

import httpx
import pytest

from loco import Client
from loco.contracts.errors import TooManyRequests
from loco.contracts.keys import Scope
from loco_api import rates
from loco_api.rates import Rate, network_of

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}


@pytest.fixture
def limited(live_api) -> Callable[..., str]:
    """Starts the API with other limits and gives its address: `limited(submits_per_minute=2)`."""

    def restart(**limits: int) -> str:
        live_api.stop()
        live_api.settings = live_api.settings.model_copy(update=limits)
        live_api.start()
        return live_api.url

    return restart


def ask(url: str, key: str, method: str = "GET", body: object = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, url, headers=headers, json=body, trust_env=False, timeout=30)


def test_wrong_keys_of_an_address_are_counted_and_the_right_one_still_opens(limited, keys):
    url = limited(refusals_per_minute=3)
    _, key = keys.create("laptop", scope=Scope.ADMIN)
    answers = [ask(f"{url}/jobs", f"loco_{i}") for i in range(8)]
    codes = [answer.status_code for answer in answers]
    assert codes[:3] == [401] * 3
    assert 429 in codes[3:]
    last = next(answer for answer in answers if answer.status_code == 429)
    assert last.json()["error"]["code"] == "too_many_requests"
    assert 1 <= int(last.headers["Retry-After"]) <= 20
    assert ask(f"{url}/jobs", key).status_code == 200, "nobody locks another out"


def test_refusals_are_in_the_audit_trail_as_a_count(limited, keys, live_api):
    url = limited(refusals_per_minute=3)
    _, key = keys.create("laptop", scope=Scope.ADMIN)
    for i in range(20):
        ask(f"{url}/jobs/%1b[2J{i}", f"loco_{i}")
    events = ask(f"{url}/audit?refused=true", key).json()["data"]
    assert [(e["action"], e["count"], e["status"]) for e in events] == [("refused", 1, 401)]
    assert events[0]["target"] == "/jobs/%1B%5B2J0", "nothing a terminal takes for a command"
    assert ask(f"{url}/audit", key).json()["data"] == [], "no flood drives out what was done"
    live_api.stop()
    counted = keys.audit.page(refused=True)[0][0]
    assert (counted.action, counted.count, counted.address) == ("refused", 19, "127.0.0.1")


def test_submits_of_a_key_are_counted(limited, keys):
    url = limited(submits_per_minute=2)
    _, key = keys.create("laptop")
    _, other = keys.create("another")
    codes = [ask(f"{url}/jobs", key, "POST", TINY).status_code for _ in range(6)]
    assert codes[:2] == [202, 202]
    assert 429 in codes
    assert ask(f"{url}/plan", key, "POST", TINY).status_code == 429, "plans count too"
    assert ask(f"{url}/jobs", key).status_code == 200
    assert ask(f"{url}/jobs", other, "POST", TINY).status_code == 202


def test_requests_of_a_key_are_counted_and_the_client_waits_its_turn(limited, keys):
    url = limited(requests_per_minute=20)
    _, key = keys.create("laptop")
    codes = [ask(f"{url}/adapters", key).status_code for _ in range(30)]
    assert 429 in codes
    with Client(url, key) as client:
        assert {adapter["name"] for adapter in client.adapters()} >= {"math"}


def test_the_client_gives_up_with_the_servers_error(limited, keys, monkeypatch):
    monkeypatch.setattr("loco.client.http.time.sleep", lambda _seconds: None)
    url = limited(requests_per_minute=1)
    _, key = keys.create("laptop")
    with Client(url, key) as client:
        client.adapters()
        with pytest.raises(TooManyRequests, match="More than 1 requests with this key"):
            client.adapters()


def test_a_bucket_refills_evenly_and_memory_is_bounded(monkeypatch):
    now = 0.0
    rate = Rate(60, clock=lambda: now)
    assert [rate.take("a") for _ in range(61)] == [0] * 60 + [1]
    assert rate.take("b") == 0
    now = 1.0
    assert [rate.take("a"), rate.take("a")] == [0, 1]
    now = 3600.0
    assert [rate.take("a") for _ in range(61)] == [0] * 60 + [1]
    slow = Rate(2, clock=lambda: now)
    assert [slow.take("a") for _ in range(3)] == [0, 0, 30]
    monkeypatch.setattr(rates, "MOST", 100)
    for i in range(1000):
        rate.take(f"192.0.2.{i}")
    assert len(rate) == 100


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "unknown"),
    ],
)
def test_what_counts_as_one_address(address, counted):
    assert network_of(address) == counted
