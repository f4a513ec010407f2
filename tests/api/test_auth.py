"""API keys over HTTP, and how the process starts and stops."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from loco.contracts.errors import InvalidRequest
from loco.ledger.keys import Keys
from loco.settings import Settings
from loco_api.__main__ import build, check_bind
from loco_api.app import create_app

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}
CLOSED = ["/jobs", "/jobs/x", "/jobs/x/events", "/jobs/x/artifacts", "/jobs/x/artifacts/y"]
CLOSED += ["/tasks/x", "/adapters", "/adapters/math", "/workers"]
OPEN = ["/healthz", "/readyz", "/version", "/openapi.json", "/docs"]


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def keys(redis_url, namespace) -> Iterator[Keys]:
    keys = Keys.connect(redis_url, namespace=namespace)
    yield keys
    keys.close()


def test_without_keys_programs_of_this_machine_are_served(http):
    assert all(http.get(path).status_code in (200, 404) for path in CLOSED + OPEN)


def test_with_a_key_every_route_but_the_open_ones_asks_for_it(http, keys):
    info, key = keys.create("laptop")
    for path in CLOSED:
        answer = http.get(path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "unauthorized"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert http.post("/jobs", json=TINY).status_code == 401
    assert http.post("/jobs/x/cancel").status_code == 401
    assert all(http.get(path).status_code == 200 for path in OPEN)
    good = {"Authorization": f"Bearer {key}"}
    assert http.post("/jobs", json=TINY, headers=good).status_code == 202
    assert http.get("/jobs", headers={"Authorization": f"bearer {key}"}).status_code == 200
    keys.create("second")
    keys.revoke(info.id)
    assert http.get("/jobs", headers=good).status_code == 401


@pytest.mark.parametrize(
    "value", ["Bearer loco_wrong", "Bearer", "Basic bG9jbzpsb2Nv", "loco_x", "Bearer é"]
)
def test_wrong_keys_are_refused(http, keys, value):
    keys.create("laptop")
    answer = http.get("/jobs", headers={"Authorization": value.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "loco_wrong" not in answer.text


def test_a_web_page_cannot_reach_a_server_without_keys(http, keys):
    rebound = http.get("/jobs", headers={"Host": "evil.example:8321"})
    assert (rebound.status_code, rebound.json()["error"]["param"]) == (403, "Host")
    crossed = http.post("/jobs/x/cancel", headers={"Origin": "https://evil.example"})
    assert (crossed.status_code, crossed.json()["error"]["param"]) == (403, "Origin")
    _, key = keys.create("behind a proxy")
    headers = {"Host": "neurocore", "Authorization": f"Bearer {key}"}
    assert http.get("/jobs", headers=headers).status_code == 200


def test_a_network_needs_a_key(live_settings, keys):
    context = build(live_settings.model_copy(update={"host": "0.0.0.0"}))
    with pytest.raises(InvalidRequest) as caught:
        check_bind(context)
    assert "loco keys create" in str(caught.value.hint)
    keys.create("laptop")
    check_bind(context)
    context.ledger.close()
    context.keys.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::"])
def test_when_the_last_key_goes_a_server_on_a_network_serves_nobody(live_settings, host):
    context = build(live_settings.model_copy(update={"host": host}))

    async def ask() -> int:
        transport = httpx.ASGITransport(app=create_app(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.get("/jobs")).status_code

    assert asyncio.run(ask()) == 401
    context.ledger.close()
    context.keys.close()


def environment(settings: Settings, **changes: str) -> dict[str, str]:
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("LOCO_", "OLLAMA"))},
        "LOCO_PORT": str(settings.port),
        "LOCO_REDIS_URL": str(settings.redis_url),
        "LOCO_NAMESPACE": settings.namespace,
        "LOCO_ADAPTERS_DIR": str(settings.adapters_dir),
        "LOCO_DATA_DIR": str(settings.data_dir),
        **changes,
    }


def run_to_the_end(settings: Settings, **changes: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "loco_api"],
        env=environment(settings, **changes),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_process_refuses_a_network_without_a_key(live_settings):
    ended = run_to_the_end(live_settings, LOCO_HOST="0.0.0.0")
    assert ended.returncode == 2
    assert "The server does not listen on 0.0.0.0" in ended.stderr
    assert "loco keys create" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_process_says_which_setting_is_wrong(live_settings):
    for name, value in [("LOCO_REDIS_URL", ""), ("LOCO_PORT", "http"), ("LOCO_REDIS_URL", "x://y")]:
        ended = run_to_the_end(live_settings, **{name: value})
        assert ended.returncode == 2
        assert name in ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_process_serves_and_stops_on_sigterm_though_somebody_listens(
    live_settings, keys, tmp_path
):
    _, key = keys.create("laptop")
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "loco_api"],
            env=environment(live_settings),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{live_settings.port}"
    headers = {"Authorization": f"Bearer {key}"}
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{url}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as http:
            job_id = http.post("/jobs", json=TINY).json()["id"]
            live = {"Accept": "text/event-stream"}
            with http.stream("GET", f"/jobs/{job_id}/events", headers=live) as response:
                lines = response.iter_lines()
                next(lines)
                started = time.monotonic()
                process.send_signal(signal.SIGTERM)
                for _ in lines:
                    pass
        assert process.wait(15) == 0
        assert time.monotonic() - started < 8
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert key not in log.read_text()
