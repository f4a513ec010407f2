"""Somebody who left goes on listening.

Before: an event stream that was open when its key was revoked stayed open until its job ended.
"""

import threading
import time

import httpx
import pytest

from loco.ledger.keys import Keys
from loco_api import streams

pytestmark = pytest.mark.redis

LIVE = {"Accept": "text/event-stream"}
DEADLINE = 60.0


@pytest.fixture
def keys(keys, monkeypatch) -> Keys:
    monkeypatch.setattr(streams, "WELCOME_SECONDS", 0.2)
    return keys


class Listener:
    """Reads a job's events in a thread until the server ends the stream."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.first, self.ended = threading.Event(), threading.Event()
        self._url, self._headers = url, headers
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self.first.wait(DEADLINE), "nothing came"

    def _listen(self) -> None:
        headers = {**LIVE, **self._headers}
        with httpx.stream(
            "GET", self._url, headers=headers, trust_env=False, timeout=DEADLINE
        ) as got:
            for _ in got.iter_lines():
                self.first.set()
        self.ended.set()


def test_a_stream_ends_when_its_key_is_revoked(live_api, keys, ledger, spec):
    job, _ = ledger.submit(spec())
    url = f"{live_api.url}/jobs/{job.id}/events"
    gone, key = keys.create("gone")
    _, stays = keys.create("stays")
    leaver = Listener(url, {"Authorization": f"Bearer {key}"})
    stayer = Listener(url, {"Authorization": f"Bearer {stays}"})
    keys.revoke(gone.id)
    assert leaver.ended.wait(DEADLINE)
    time.sleep(0.5)
    assert not stayer.ended.is_set()
    ledger.cancel(job.id)
    assert stayer.ended.wait(DEADLINE)


def test_a_stream_without_a_key_ends_when_the_first_key_is_made(live_api, keys, ledger, spec):
    job, _ = ledger.submit(spec())
    listener = Listener(f"{live_api.url}/jobs/{job.id}/events", {})
    keys.create("laptop")
    assert listener.ended.wait(DEADLINE)
