"""A job's events over HTTP: pages, and the live stream with resume, snapshot and slow clients."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import redis

from loco.contracts.stages import Stage
from loco_api import streams

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}
LIVE = {"Accept": "text/event-stream"}


@dataclass
class Message:
    """One event as it came over the wire; a comment has only `comment`."""

    id: str | None = None
    event: str | None = None
    data: str = ""
    comment: str | None = None

    @property
    def json(self):
        return json.loads(self.data)


def messages(response: httpx.Response) -> Iterator[Message]:
    message = Message()
    for line in response.iter_lines():
        if not line:
            yield message
            message = Message()
            continue
        field, _, value = line.partition(":")
        setattr(message, field or "comment", value.removeprefix(" "))


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def job_id(http) -> str:
    return str(http.post("/jobs", json=TINY).json()["id"])


def follow(http: httpx.Client, job_id: str, last: str | None = None) -> list[Message]:
    """Everything a stream says until the server ends it."""
    headers = LIVE | ({"Last-Event-ID": last} if last else {})
    with http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-cache"
        return list(messages(response))


def stored(http: httpx.Client, job_id: str) -> list[dict]:
    return http.get(f"/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]


def open_streams(live_api) -> int:
    return live_api._server._streams._open


def wait_until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.02)


def test_pages_of_events(http, job_id):
    whole = http.get(f"/jobs/{job_id}/events").json()
    types = [event["type"] for event in whole["data"]]
    assert types[0] == "job.submitted"
    assert "stage.queued" in types
    assert not whole["has_more"]
    first = http.get(f"/jobs/{job_id}/events", params={"limit": 1}).json()
    assert (first["data"], first["has_more"]) == (whole["data"][:1], True)
    rest = http.get(f"/jobs/{job_id}/events", params={"after": first["data"][0]["id"]}).json()
    assert rest["data"] == whole["data"][1:]


@pytest.mark.parametrize("after", ["x", "-1", "1-", "1-2-3", "1" * 40, "(1", "+"])
def test_what_is_no_event_id_is_refused(http, job_id, after):
    page = http.get(f"/jobs/{job_id}/events", params={"after": after})
    assert (page.status_code, page.json()["error"]["param"]) == (422, "after")
    live = http.get(f"/jobs/{job_id}/events", headers=LIVE | {"Last-Event-ID": after})
    assert (live.status_code, live.json()["error"]["param"]) == (422, "Last-Event-ID")


def test_the_stream_follows_a_job_live_and_ends_with_it(http, live_api, job_id, hands):
    seen: list[Message] = []
    thread = threading.Thread(target=lambda: seen.extend(follow(http, job_id)))
    thread.start()
    wait_until(lambda: open_streams(live_api) == 1)
    claim = hands.claim(Stage.PREPARE)
    hands.progress(claim, percent=50)
    hands.fail(claim, "no data")
    thread.join(20)
    assert not thread.is_alive()
    assert [m.event for m in seen if m.comment is None][-1] == "job.failed"
    assert [m.json for m in seen if m.comment is None] == stored(http, job_id)
    assert all(m.id == m.json["id"] and m.event == m.json["type"] for m in seen)
    wait_until(lambda: open_streams(live_api) == 0)


def test_events_come_at_once(http, job_id, hands, monkeypatch):
    monkeypatch.setattr("loco_api.streams._BLOCK_SECONDS", 8)
    with http.stream("GET", f"/jobs/{job_id}/events", headers=LIVE) as response:
        stream = messages(response)
        while next(stream).event != "stage.queued":
            pass
        claim = hands.claim(Stage.PREPARE)
        while next(stream).event != "stage.running":
            pass
        started = time.monotonic()
        hands.progress(claim, percent=1)
        assert next(stream).json["data"]["percent"] == 1
        assert time.monotonic() - started < 4  # not only when the read of Redis comes back
        hands.fail(claim, "done")


def test_a_stream_resumes_behind_the_last_event(http, job_id):
    http.post(f"/jobs/{job_id}/cancel")
    everything = follow(http, job_id)
    assert everything[-1].event == "job.cancelled"
    for place, message in enumerate(everything[:-1]):
        assert follow(http, job_id, message.id) == everything[place + 1 :]
    by_query = http.get(f"/jobs/{job_id}/events", headers=LIVE, params={"after": everything[0].id})
    assert by_query.text.count("event:") == len(everything) - 1


def test_an_ended_job_with_nothing_new_is_204_so_that_browsers_stop(http, job_id):
    http.post(f"/jobs/{job_id}/cancel")
    last = stored(http, job_id)[-1]["id"]
    answer = http.get(f"/jobs/{job_id}/events", headers=LIVE | {"Last-Event-ID": last})
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_retried_job_is_followed_past_its_first_end(http, live_api, job_id, hands):
    hands.fail(hands.claim(Stage.PREPARE), "first")
    http.post(f"/jobs/{job_id}/retry")
    seen: list[Message] = []
    thread = threading.Thread(target=lambda: seen.extend(follow(http, job_id)))
    thread.start()
    wait_until(lambda: open_streams(live_api) == 1)
    hands.fail(hands.claim(Stage.PREPARE), "second")
    thread.join(20)
    ends = [m.json["data"]["error"]["message"] for m in seen if m.event == "job.failed"]
    assert ends == ["first", "second"]


def test_a_snapshot_comes_first_where_events_are_gone(http, job_id, hands, ledger, redis_url):
    first = stored(http, job_id)[0]["id"]
    hands.fail(hands.claim(Stage.PREPARE), "no data")
    with redis.Redis.from_url(redis_url) as client:
        client.xtrim(ledger.events_key(job_id), maxlen=2, approximate=False)
    snapshot, *rest = follow(http, job_id, first)
    assert (snapshot.event, snapshot.id) == ("snapshot", first)
    assert snapshot.json["data"]["status"] == "failed"
    assert snapshot.json["data"]["id"] == job_id
    assert [m.json for m in rest] == stored(http, job_id)
    assert len(rest) == 2
    assert [m.event for m in follow(http, job_id, rest[0].id)] == ["job.failed"]


def test_heartbeats_keep_a_silent_stream_open(http, job_id, monkeypatch):
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.2)
    with http.stream("GET", f"/jobs/{job_id}/events", headers=LIVE) as response:
        comments = (m for m in messages(response) if m.comment is not None)
        assert [next(comments).comment, next(comments).comment] == ["ping", "ping"]


def test_streams_are_bounded(http, live_api, job_id, monkeypatch):
    monkeypatch.setattr(streams, "LIMIT", 1)
    with http.stream("GET", f"/jobs/{job_id}/events", headers=LIVE) as response:
        stream = messages(response)  # dropping it would close the response
        next(stream)
        refused = http.get(f"/jobs/{job_id}/events", headers=LIVE)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_streams"
        assert http.get(f"/jobs/{job_id}/events").status_code == 200
    wait_until(lambda: open_streams(live_api) == 0)


def test_a_client_that_goes_leaves_nothing_behind(http, live_api, job_id, redis_url):
    with redis.Redis.from_url(redis_url) as client:
        blocked = lambda: client.info("clients")["blocked_clients"]  # noqa: E731
        before = blocked()
        with http.stream("GET", f"/jobs/{job_id}/events", headers=LIVE) as response:
            stream = messages(response)
            next(stream)
            wait_until(lambda: blocked() == before + 1)
        wait_until(lambda: open_streams(live_api) == 0)
        wait_until(lambda: blocked() == before)


@pytest.mark.slow
def test_a_slow_client_holds_back_nobody_and_is_given_up(
    http, live_api, job_id, hands, ledger, monkeypatch
):
    monkeypatch.setattr(streams, "SEND_SECONDS", 2.0)
    claim = hands.claim(Stage.PREPARE)
    with socket.create_connection(("127.0.0.1", live_api.settings.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = (
            f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {LIVE['Accept']}"
        )
        slow.sendall(f"{request}\r\n\r\n".encode())
        wait_until(lambda: open_streams(live_api) == 1)
        for _ in range(400):  # 8 MB, more than the buffers between the two take
            ledger.log(claim.task_id, claim.token, "x" * 20_000)
        hands.fail(claim, "done")
        started = time.monotonic()
        assert follow(http, job_id)[-1].event == "job.failed"
        assert http.get(f"/jobs/{job_id}").status_code == 200
        assert time.monotonic() - started < 10
        wait_until(lambda: open_streams(live_api) == 0, seconds=20)


def test_a_stopping_server_ends_its_streams(http, live_api, job_id):
    seen: list[Message] = []

    def listen() -> None:
        with http.stream("GET", f"/jobs/{job_id}/events", headers=LIVE) as response:
            for message in messages(response):
                seen.append(message)  # noqa: PERF402 (each as it comes)

    thread = threading.Thread(target=listen)
    thread.start()
    wait_until(lambda: seen)
    assert open_streams(live_api) == 1
    started = time.monotonic()
    live_api.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - started < 5
    assert seen[0].event == "job.submitted"
