"""Somebody who can write to Redis forges records.

A forged export task published a file outside the adapters folder and had a file of mode 0600 served
over HTTP; one unreadable record made GET /jobs, /readyz and /workers answer 500, stopped the reaper
and was claimed again and again. One foreign entry cost all events of a job, the audit trail or all
versions of an adapter. A record is refused by its own ID now, and everything else goes on.
"""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis
from live_api import ApiServer
from versions import Builder

from loco import Client
from loco.contracts.artifacts import Artifact
from loco.contracts.errors import NotFound, UnreadableRecord, UnsafePath
from loco.contracts.files import sha256_of
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue, Stage
from loco.ledger import views
from loco.ledger.keys import Keys
from loco.ledger.ledger import Ledger
from loco.running.attempt import attempt_folder, stage_run
from loco.running.registry_file import export
from loco.running.runner import publish_committed
from loco.running.verify import verified
from loco.settings import Settings

pytestmark = pytest.mark.redis

SECRET = "root:x:0"


@pytest.fixture
def raw(settings: Settings) -> redis.Redis:
    """Redis as whoever reaches it writes to it."""
    return redis.Redis.from_url(str(settings.redis_url), decode_responses=True)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside the adapters folder."""
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def committed(ledger: Ledger, spec: Callable[..., JobSpec]) -> str:
    """A job whose prepare has committed without files."""
    job, _ = ledger.submit(spec(stages=("prepare",)))
    claim = ledger.claim(Queue.CPU, worker_id="w", nonce="first")
    assert claim is not None
    ledger.commit(claim.task_id, claim.token, result={}, artifacts=(), fingerprint="f")
    return job.id


def forged(name: str, path: str, content: Path) -> str:
    """Artifacts of a task as commit.lua stores them."""
    entry = {"name": name, "stage": "prepare", "path": path, "media_type": "text/plain"}
    return json.dumps([entry | {"size": len(SECRET), "sha256": sha256_of(content)}])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gguf/../../../outside", "math/runs/x/prepare/a1/f"),
        ("training_data.jsonl", "../secret"),
        ("training_data.jsonl", "/etc/passwd"),
        ("/tmp/outside", "math/f"),
        ("training_data.jsonl", "math/\x00"),
        ("training_data.jsonl", "a/" * 600 + "f"),
    ],
)
def test_a_task_with_a_way_out_cannot_be_read(
    name: str,
    path: str,
    ledger: Ledger,
    committed: str,
    raw: redis.Redis,
    settings: Settings,
    secret: Path,
) -> None:
    task = f"{committed}-prepare"
    raw.hset(f"{ledger.namespace}:task:{task}", "artifacts", forged(name, path, secret))
    before = sorted(settings.adapters_dir.parent.rglob("*"))
    with pytest.raises(UnreadableRecord, match=r"cannot be read: (name|path): "):
        ledger.task(task)
    with pytest.raises(UnreadableRecord):
        ledger.job(committed)
    publish_committed(ledger, settings, task)
    assert sorted(settings.adapters_dir.parent.rglob("*")) == before


def test_a_link_in_a_run_that_leads_out_is_not_followed(
    ledger: Ledger, committed: str, raw: redis.Redis, settings: Settings, secret: Path
) -> None:
    folder = settings.adapters_dir / "math" / "runs" / committed / "prepare" / "a1"
    folder.mkdir(parents=True)
    (folder / "training_data.jsonl").symlink_to(secret)
    path = f"math/runs/{committed}/prepare/a1/training_data.jsonl"
    task = f"{committed}-prepare"
    raw.hset(
        f"{ledger.namespace}:task:{task}",
        "artifacts",
        forged("training_data.jsonl", path, secret),
    )
    [artifact] = ledger.task(task).artifacts
    with pytest.raises(NotFound, match="is missing"):
        verified(settings.adapters_dir, artifact)
    publish_committed(ledger, settings, task)
    assert not (settings.adapters_dir / "math" / "training_data.jsonl").exists()


def test_files_are_not_published_through_a_link_that_leads_out(
    ledger: Ledger, committed: str, raw: redis.Redis, settings: Settings, tmp_path: Path
) -> None:
    content = settings.adapters_dir / "math" / "runs" / committed / "f"
    content.parent.mkdir(parents=True)
    content.write_text(SECRET)
    outside = tmp_path / "outside"
    outside.mkdir()
    place = settings.adapters_dir / "math" / "replays"
    place.symlink_to(outside)
    task, job = f"{committed}-prepare", f"{ledger.namespace}:job:{committed}"
    raw.hset(
        f"{ledger.namespace}:task:{task}",
        "artifacts",
        forged("training_data.jsonl", f"math/runs/{committed}/f", content),
    )
    stored = json.loads(str(raw.hget(job, "spec")))
    raw.hset(job, "spec", json.dumps(stored | {"place": "replays/x"}))
    publish_committed(ledger, settings, task)
    assert list(outside.iterdir()) == []


def test_an_attempt_neither_writes_nor_resumes_outside(
    ledger: Ledger,
    spec: Callable[..., JobSpec],
    raw: redis.Redis,
    settings: Settings,
    tmp_path: Path,
) -> None:
    job, _ = ledger.submit(spec(stages=("prepare",)))
    outside = tmp_path / "outside"
    outside.mkdir()
    (settings.adapters_dir / "math" / "runs").symlink_to(outside)
    claim = ledger.claim(Queue.CPU, worker_id="w", nonce="n")
    assert claim is not None
    with pytest.raises(UnsafePath, match="leads outside"):
        attempt_folder(settings, claim)
    assert list(outside.iterdir()) == []
    (settings.adapters_dir / "math" / "runs").unlink()

    checkpoint = [{"path": "math/gguf", "step": 3}]  # inside, but of no attempt of this job
    key = f"{ledger.namespace}:task:{claim.task_id}"
    raw.hset(key, "checkpoints", json.dumps(checkpoint))
    with pytest.raises(UnsafePath):
        stage_run(ledger, settings, claim.model_copy(update={"job": ledger.job(job.id)}))


def test_one_record_that_cannot_be_read_stops_nothing(
    ledger: Ledger, spec: Callable[..., JobSpec], raw: redis.Redis
) -> None:
    ids = [ledger.submit(spec(stages=("prepare",)))[0].id for _ in range(6)]
    broken, wrong_type, no_hash, no_adapter, no_stage, whole = ids
    raw.hdel(f"{ledger.namespace}:job:{no_adapter}", "adapter")
    raw.hset(f"{ledger.namespace}:task:{no_stage}-prepare", "stage", "nostage")
    raw.hset(f"{ledger.namespace}:job:{broken}", "spec", "{")
    raw.delete(f"{ledger.namespace}:job:{wrong_type}")
    raw.set(f"{ledger.namespace}:job:{wrong_type}", "text")
    raw.hdel(f"{ledger.namespace}:task:{no_hash}-prepare", "attempt", "hinted_at")
    raw.zadd(f"{ledger.namespace}:workers", {"ghost": 2**52})
    raw.set(f"{ledger.namespace}:worker:ghost", "text")

    page = ledger.page()
    assert [job.id for job in page.jobs] == [whole]
    assert {entry.id for entry in page.unreadable} == {
        broken,
        wrong_type,
        no_hash,
        no_adapter,
        no_stage,
    }
    assert all("cannot be read" in entry.message for entry in page.unreadable)
    assert ledger.workers() == []
    ledger.reap()

    claimed = [ledger.claim(Queue.CPU, worker_id="w", nonce=str(n)) for n in range(6)]
    assert [claim.job_id for claim in claimed if claim] == [whole]
    ledger.reap()
    assert ledger.claim(Queue.CPU, worker_id="w", nonce="again") is None


def test_the_api_shows_it_as_an_entry(
    live_api: ApiServer, ledger: Ledger, spec: Callable[..., JobSpec], raw: redis.Redis
) -> None:
    broken = ledger.submit(spec(stages=("prepare",)))[0].id
    whole = ledger.submit(spec(stages=("prepare",)))[0].id
    raw.hset(f"{ledger.namespace}:job:{broken}", "created_at", "yesterday")
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as http:
        page = http.get("/jobs").json()
        assert [job["id"] for job in page["data"]] == [whole]
        assert [(e["id"], e["code"]) for e in page["unreadable"]] == [(broken, "unreadable_record")]
        assert http.get("/readyz").status_code == 200
        assert http.get("/workers").status_code == 200
        answer = http.get(f"/jobs/{broken}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "unreadable_record")
        assert http.get(f"/jobs/{whole}").status_code == 200


def test_records_that_cannot_be_read_fill_pages_too(
    live_api: ApiServer, ledger: Ledger, spec: Callable[..., JobSpec], raw: redis.Redis
) -> None:
    """Before: one page, whatever its limit, told of all of them."""
    oldest = ledger.submit(spec(stages=("prepare",)))[0].id
    broken = [ledger.submit(spec(stages=("prepare",)))[0].id for _ in range(40)]
    newest = ledger.submit(spec(stages=("prepare",)))[0].id
    for job_id in broken:
        raw.hset(f"{ledger.namespace}:job:{job_id}", "spec", "{")
    page = ledger.page(limit=7)
    assert (len(page.jobs), len(page.unreadable), page.more) == (1, 6, True)
    seen: list[str] = []
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as http:
        after: dict[str, str] = {}
        while True:
            told = http.get("/jobs", params={"limit": 7, **after}).json()
            entries = [*told["data"], *told["unreadable"]]
            assert len(entries) <= 7
            seen += [entry["id"] for entry in entries]
            if not told["has_more"]:
                break
            after = {"after": told["last"]}
    assert sorted(seen) == sorted([oldest, *broken, newest])
    with Client(live_api.url) as client:
        assert [job.id for job in client.jobs(page_size=7)] == [newest, oldest]


def test_an_artifact_names_a_path_below_its_folders(secret: Path) -> None:
    fields = {"stage": Stage.PREPARE, "size": 1, "sha256": "0" * 64, "media_type": "text/plain"}
    with pytest.raises(ValueError, match="not a path inside a folder"):
        Artifact(name="a/../../b", path="math/f", **fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a path inside a folder"):
        Artifact(name="b", path=str(secret), **fields)  # type: ignore[arg-type]


def test_a_foreign_entry_costs_no_list_of_events(
    live_api: ApiServer, ledger: Ledger, spec: Callable[..., JobSpec], raw: redis.Redis
) -> None:
    """Before: 500 for the events of the job, and its live stream broke off there every time."""
    job = ledger.submit(spec(stages=("prepare",)))[0].id
    stream = ledger.events_key(job)
    for foreign in ({"x": "1"}, {"type": b"\xff", "at": "x", "stage": "", "data": "{}"}) * 150:
        raw.xadd(stream, foreign)
    ledger.cancel(job)
    seen = [event.type for event in ledger.events(job)]
    assert (seen[0], seen[-1]) == ("job.submitted", "job.cancelled")
    assert len(seen) == raw.xlen(stream) - 300
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as http:
        paged: list[str] = []
        after, more = "0", True
        while more:
            page = http.get(f"/jobs/{job}/events", params={"limit": 1, "after": after}).json()
            paged += [event["type"] for event in page["data"]]
            after, more = page["data"][-1]["id"], page["has_more"]
        assert paged == seen
        told = http.get(f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}).text
        assert [line[7:] for line in told.splitlines() if line.startswith("event: ")] == seen


def test_a_foreign_entry_costs_no_audit_trail(
    settings: Settings, keys: Keys, raw: redis.Redis
) -> None:
    stream = f"{settings.namespace}:audit"
    keys.audit.record(action="first", target="/", outcome="ok")
    for foreign in ({"x": "1"}, {"event": "{"}, {"event": "[]"}, {"event": b"\xff"}) * 10:
        raw.xadd(stream, foreign)
    keys.audit.record(action="second", target="/", outcome="ok")
    keys.audit.record(action="third", target="/", outcome="ok")
    page, more = keys.audit.page(limit=2)
    assert ([event.action for event in page], more) == (["third", "second"], True)
    page, more = keys.audit.page(limit=2, after=page[-1].id)
    assert ([event.action for event in page], more) == (["first"], False)


def test_a_foreign_entry_costs_no_list_of_versions(
    live_api: ApiServer,
    ledger: Ledger,
    spec: Callable[..., JobSpec],
    raw: redis.Redis,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(views, "_told", set())
    build = Builder(ledger, spec)
    for _ in range(6):
        build.registered()
    version = f"{ledger.namespace}:version:math"
    raw.hset(f"{version}:2", "entry", "{")
    raw.hdel(f"{version}:3", "digest", "model")
    raw.hset(f"{version}:4", "entry", b"\xff")
    raw.delete(f"{version}:5")
    raw.set(f"{version}:5", "text")
    raw.rpush(f"{version}:6:events", "x")
    raw.zadd(f"{ledger.namespace}:versions:math", {"ghost": 2})
    raw.sadd(f"{ledger.namespace}:models", "ghost")
    raw.hset(f"{ledger.namespace}:promoted:ghost", "adapter", "math")
    found, more = ledger.registry.versions("math", limit=2)
    assert ([entry.version for entry in found], more) == ([1], False)
    with pytest.raises(UnreadableRecord, match="math version '2' cannot be read"):
        ledger.registry.version("math", 2)
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as http:
        page = http.get("/adapters/math/versions").json()
        assert [entry["version"] for entry in page["data"]] == [1]
        assert http.get("/adapters/math").status_code == 200
    assert export(ledger, settings.adapters_dir)
    assert caplog.text.count("record of math version ") == 1, "told once a list"
    raw.hset(f"{version}:1", "entry", "{")
    raw.hincrby(f"{ledger.namespace}:registry", "changes", 1)
    assert export(ledger, settings.adapters_dir), "of an adapter with none left, too"


@pytest.mark.parametrize("score", [-0.5, float("-inf"), float("inf")])
def test_a_place_that_is_no_number_of_a_job_ends_no_list(
    ledger: Ledger, spec: Callable[..., JobSpec], raw: redis.Redis, score: float
) -> None:
    """A list that goes on below a forged place found the same entry again, for ever."""
    forged, whole = (ledger.submit(spec(stages=("prepare",)))[0].id for _ in range(2))
    raw.zadd(f"{ledger.namespace}:jobs", {forged: score})
    page = ledger.page(limit=10)
    assert {job.id for job in page.jobs} == {forged, whole}
