"""Work that takes minutes, asked for in numbers by one key.

Looks at rows queued behind one place without an end, and one owner's uploads held both places of those
that look through files: nobody else's were looked through meanwhile.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from loco.contracts.errors import Unseen
from loco_api import looks, uploads

pytestmark = pytest.mark.redis

ROW = b'{"question": "How far is a mile?", "answer": "1.6 km"}\n'
TURNS = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
LOOK = {
    "base_model": "smollm2-135m-instruct",
    "max_length": 64,
    "rows": [{"line": 1, "conversations": TURNS}],
}


def test_one_owners_uploads_leave_a_place_to_others(login, monkeypatch):
    leave, working, inspect = threading.Event(), [], uploads.inspect

    def slow(path, *arguments):
        is_first = not working
        working.append(path)
        if is_first:
            leave.wait(60)
        return inspect(path, *arguments)

    monkeypatch.setattr(uploads, "inspect", slow)
    anna, ben = login("anna"), login("ben")
    with ThreadPoolExecutor(3) as pool:
        try:
            slow_one = pool.submit(anna.post, "/datasets", content=ROW, params={"name": "first"})
            wait_until(lambda: working)
            again = pool.submit(anna.post, "/datasets", content=ROW * 2, params={"name": "again"})
            file = {"file": ("rows.jsonl", ROW * 3)}
            third = pool.submit(anna.post, "/v1/files", data={"purpose": "fine-tune"}, files=file)
            wait_until(lambda: len(anna.get("/datasets").json()["data"]) == 3)
            assert ben.post("/datasets", content=ROW).status_code == 201
            assert len(working) == 2, "anna's others wait for her first"
        finally:
            leave.set()
        assert [f.result().status_code for f in (slow_one, again, third)] == [201, 201, 200]


def test_a_look_does_not_wait_without_end(login, monkeypatch):
    leave, begun = threading.Event(), threading.Event()

    def slow(*_):
        begun.set()
        leave.wait(60)
        raise Unseen("No tokenizer.")

    monkeypatch.setattr(looks, "look", slow)
    monkeypatch.setattr(looks, "_SECONDS", 0.3)
    anna, ben = login("anna"), login("ben")
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(anna.post, "/looks", json=LOOK)
            assert begun.wait(60)
            refused = ben.post("/looks", json=LOOK)
        finally:
            leave.set()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert first.result().status_code == 409
    assert ben.post("/looks", json=LOOK).status_code == 409, "its place is free again"


def wait_until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)
