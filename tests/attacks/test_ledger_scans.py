"""Requests of a key that may only read, each of which reads the whole ledger.

`GET /jobs/{id}/removal`, a list of fine-tuning jobs by a metadata that none has, and a look at a job in
line parsed every job or a hundred of them, as often and as many at once as anybody asked.
"""

import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from live_api import ApiServer, Hands

from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.ledger import Ledger
from loco.planning import waiting
from loco.planning.history import History
from loco_api import removal
from loco_api.openai_api import jobs

pytestmark = pytest.mark.redis

Specs = Callable[..., JobSpec]


@pytest.fixture
def http(live_api: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as client:
        yield client


def test_looks_for_descendants_wait_in_line_and_not_for_long(
    http: httpx.Client, live_api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = http.post("/jobs", json={"adapter": "math", "profile": "tiny"}).json()["id"]
    url = f"{live_api.url}/jobs/{job_id}/removal"
    begun, leave = threading.Semaphore(0), threading.Event()
    look = removal.look

    def slow(*arguments: object) -> object:
        begun.release()
        leave.wait(60)
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(removal, "look", slow)
    monkeypatch.setattr(removal, "_SECONDS", 0.3)
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.get(url, trust_env=False, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert begun.acquire(timeout=60)
        assert begun.acquire(timeout=60)
        refused = httpx.get(url, trust_env=False, timeout=60)
    finally:
        leave.set()
        for thread in threads:
            thread.join()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
    assert answers == [200, 200]
    assert http.get(url).status_code == 200


def test_a_list_by_metadata_looks_at_some_jobs_only(
    http: httpx.Client, ledger: Ledger, spec: Specs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SCANNED", 2)
    monkeypatch.setattr(jobs, "_MOST_SCANS", 2)
    made = [ledger.submit(spec(), metadata={"n": str(n)})[0].id for n in range(6)]
    asked: dict[str, str] = {"metadata[n]": "0"}
    first = http.get("/v1/fine_tuning/jobs", params=asked).json()
    assert (first["data"], first["has_more"], first["last_id"]) == ([], True, made[2])
    asked["after"] = first["last_id"]
    second = http.get("/v1/fine_tuning/jobs", params=asked).json()
    assert ([job["id"] for job in second["data"]], second["has_more"]) == ([made[0]], False)


def test_looks_at_a_job_in_line_read_the_history_once(
    ledger: Ledger, hands: Hands, spec: Specs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = ledger.submit(spec(stages=(Stage.PREPARE,)))
    reads, of = [], History.of

    def counted(reader: Ledger) -> History:
        reads.append(reader)
        return of(reader)

    monkeypatch.setattr(History, "of", counted)
    for _ in range(5):
        assert waiting.waiting(ledger, job) is not None
    assert len(reads) == 1
    monkeypatch.setattr(waiting, "_KEPT", -1.0)
    waiting.waiting(ledger, job)
    assert len(reads) == 2
