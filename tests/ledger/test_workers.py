"""Workers as the ledger lists them."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from loco.contracts.jobs import WorkerInfo
from loco.ledger.ledger import Ledger

pytestmark = pytest.mark.redis


def worker(worker_id: str, task_id: str | None = None) -> WorkerInfo:
    return WorkerInfo(
        id=worker_id,
        queue="cpu",
        host="box",
        pid=1,
        device="cpu",
        task_id=task_id,
        seen_at=datetime.now(UTC) - timedelta(hours=5),
    )


def test_a_heartbeat_lists_the_worker_on_the_clock_of_the_server(ledger: Ledger) -> None:
    assert ledger.workers() == []
    ledger.heartbeat(worker("b"))
    ledger.heartbeat(worker("a", "job-train"))
    ledger.heartbeat(worker("b", "job-eval"))
    found = ledger.workers()
    assert [(w.id, w.task_id) for w in found] == [("a", "job-train"), ("b", "job-eval")]
    assert all(abs(w.seen_at - datetime.now(UTC)) < timedelta(seconds=10) for w in found)


def test_a_silent_worker_is_no_longer_listed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loco.ledger.ledger._WORKER_SECONDS", 0.05)
    ledger.heartbeat(worker("a"))
    time.sleep(0.07)
    assert ledger.workers() == []
