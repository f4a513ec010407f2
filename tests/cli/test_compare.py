"""`loco diff` and `loco replay` as a user runs them, against the real API."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loco import Client
from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis

LOCO = Path(sys.executable).with_name("loco")
Loco = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(live_api) -> Iterator[Client]:
    with Client(live_api.url) as client:
        yield client


@pytest.fixture
def loco(live_api, tmp_path) -> Loco:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCO_")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LOCO, *words],
            env={**kept, "LOCO_SERVER": live_api.url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def prepared(client: Client, hands, rows: bytes = b"{}\n", **request: object) -> str:
    job = client.submit("math", profile="tiny", stages=["prepare"], **request)
    hands.commit(hands.claim(Stage.PREPARE), {"kept": 1}, {"training_data.jsonl": rows})
    return job.id


def replayed_by(hands, rows: bytes) -> threading.Thread:
    """Commits the replay's prepare as soon as it is there."""

    def work() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            claim = hands.ledger.claim(
                Stage.PREPARE.queue, worker_id="hands", nonce=os.urandom(8).hex()
            )
            if claim is not None:
                hands.commit(claim, {"kept": 1}, {"training_data.jsonl": rows})
                return
            time.sleep(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_diff_shows_only_what_differs(loco: Loco, client: Client, hands) -> None:
    one = prepared(client, hands)
    two = prepared(client, hands, rows=b"[]\n", train={"epochs": 9})
    said = loco("diff", one, two)
    assert said.returncode == 0, said.stderr
    assert f"{one} and {two}: different" in said.stdout
    assert "train.epochs" in said.stdout
    assert "prepare/training_data.jsonl" in said.stdout
    assert "environment: the same" in said.stdout
    assert "learning_rate" not in said.stdout
    document = json.loads(loco("diff", one, two, "--json").stdout)
    assert document["recipe"] == [{"field": "train.epochs", "first": 1.0, "second": 9.0}]


@pytest.mark.parametrize(
    ("rows", "verdict", "code"), [(b"{}\n", "identical", 0), (b"[]\n", "different", 1)]
)
def test_replay_waits_and_says_how_it_came_out(
    loco: Loco, client: Client, hands, rows: bytes, verdict: str, code: int
) -> None:
    one = prepared(client, hands)
    worker = replayed_by(hands, rows)
    said = loco("replay", one, "--json")
    worker.join()
    assert said.returncode == code, said.stderr
    found = json.loads(said.stdout)
    assert (found["first"], found["verdict"]) == (one, verdict)
    later = loco("replay", "--compare", one, found["second"])
    assert later.returncode == code
    assert verdict in later.stdout


def test_replay_without_waiting_says_how_to_compare(loco: Loco, client: Client, hands) -> None:
    one = prepared(client, hands)
    said = loco("replay", one, "--no-wait", "--json")
    assert said.returncode == 0, said.stderr
    new = json.loads(said.stdout)["id"]
    assert f"loco replay --compare {one} {new}" in said.stderr


def test_a_wrong_number_of_jobs_is_explained(loco: Loco) -> None:
    for words in (("one", "two"), ("--compare", "one")):
        said = loco("replay", *words)
        assert said.returncode == 2
        assert "loco replay --compare one" in said.stderr
