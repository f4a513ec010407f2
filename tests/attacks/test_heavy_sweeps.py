"""A sweep that is small as a request and large in Redis.

One request of 0.9 MB, a learning rate with 900,000 zeros and 64 seeds, was 57.6 MB in the ledger: every
point had the rate as it was written, and every reaper read them all each few seconds.
"""

import json
from typing import Any

import pytest
from celery import Celery

from loco.contracts.errors import InvalidRequest, QuotaExceeded
from loco.contracts.sweeps import SweepRequest
from loco.ledger import sweeps
from loco.ledger.ledger import Ledger
from loco.queue.sweeps import cancel_sweep, submit_sweep
from loco.settings import Settings

pytestmark = pytest.mark.redis


@pytest.fixture
def submit(ledger: Ledger, app: Celery, settings: Settings) -> Any:
    def ask(key: str, owner: str = "anna", **fields: Any) -> Any:
        fields = {"adapter": "math", "profile": "tiny", "grid": {"train.epochs": [1, 2]}} | fields
        request = SweepRequest.model_validate(fields)
        return submit_sweep(ledger, app, settings, request, idempotency_key=key, owner=owner)[0]

    return ask


def test_points_are_kept_by_their_size(submit: Any, ledger: Ledger) -> None:
    long = {"train.learning_rate": ["0.0002" + "0" * 900_000], "train.epochs": [1]}
    with pytest.raises(InvalidRequest, match="65,536 are allowed") as caught:
        submit("a", grid=long, seeds=64)
    assert caught.value.param == "train.learning_rate"
    assert ledger.sweeps.open() == []
    submit("b", grid={"train.learning_rate": ["0.0002" + "0" * 20_000]}, seeds=3)


def test_a_list_reads_no_points(submit: Any, ledger: Ledger, namespace: str) -> None:
    accepted = submit("a", seeds=2)
    with ledger._connection.client() as client:
        [size, kept] = client.hmget(f"{namespace}:sweep:{accepted.id}", "size", "points")
        assert int(size) == len(json.loads(kept)) == 4
        client.hset(f"{namespace}:sweep:{accepted.id}", "points", "no JSON")
    assert [found.size for found in ledger.sweeps.page().sweeps] == [4]


def test_an_owner_has_some_open_sweeps_at_most(
    submit: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "_MOST_OPEN", 2)
    first = submit("a")
    submit("b")
    with pytest.raises(QuotaExceeded, match="has 2 running sweeps"):
        submit("c")
    assert submit("a").id == first.id, "a repeated request is answered"
    submit("d", owner="ben")
    cancel_sweep(ledger, first.id)
    submit("c")
