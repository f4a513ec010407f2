"""DELETE /jobs/{id}: what goes, what stays, and who may."""

import os
from collections.abc import Iterator

import httpx
import pytest
from versions import Builder

from loco.contracts.errors import Conflict
from loco.contracts.keys import Scope
from loco.contracts.stages import Stage
from loco.ledger.keys import Keys
from loco.ledger.ledger import CommitAnswer
from loco.running import remove as removing
from loco.running.remove import clear_removed, remove

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny", "stages": ["prepare", "train"]}


@pytest.fixture
def http(live_api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def ended(http, hands):
    """Runs a job to its end."""

    def run(**request: object) -> dict:
        job = http.post("/jobs", json={**TINY, **request}).json()
        hands.commit(hands.claim(Stage.PREPARE), {}, {"training_data.jsonl": b"rows\n" * 100})
        hands.commit(hands.claim(Stage.TRAIN), {}, {"checkpoints/a.safetensors": b"x" * 1000})
        return http.get(f"/jobs/{job['id']}").json()

    return run


def keys_of(ledger) -> set[str]:
    with ledger._connection.client() as client:
        return set(client.keys(f"{ledger.namespace}:*"))


def error(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_an_ended_job_goes_with_its_files_and_nothing_is_left_of_it(
    http, ended, ledger, adapters_dir
):
    first = http.get("/jobs").json()["data"]
    assert first == []
    job = ended()
    other = ended()
    before = keys_of(ledger)
    run = adapters_dir / "math" / "runs" / job["id"]
    published = adapters_dir / "math" / "training_data.jsonl"
    os.link(next(run.glob("prepare/*/training_data.jsonl")), published)
    looked = http.get(f"/jobs/{job['id']}/removal").json()
    assert looked == {
        "job_id": job["id"],
        "size": 1000,
        "files": 2,
        "needed_by": [],
        "cleared": True,
    }, "published rows stay, and so do the inputs that the other job reads"
    assert run.is_dir()
    gone = http.delete(f"/jobs/{job['id']}")
    assert (gone.status_code, gone.json()) == (200, looked)
    assert not run.exists()
    assert published.read_bytes() == b"rows\n" * 100
    left = {key for key in keys_of(ledger) if job["id"] in key}
    assert left == {f"{ledger.namespace}:removed:{job['id']}"}
    assert len(before) - len(keys_of(ledger)) == 3, "job, events, two tasks; one answer more"
    error(http.get(f"/jobs/{job['id']}"), 404)
    assert [j["id"] for j in http.get("/jobs").json()["data"]] == [other["id"]]
    assert http.delete(f"/jobs/{job['id']}").json() == looked, "the answer may have been lost"
    with ledger._connection.client() as client:
        client.delete(f"{ledger.namespace}:removed:{job['id']}")
        assert job["id"] not in str(client.hgetall(f"{ledger.namespace}:newest:math"))
    error(http.delete(f"/jobs/{job['id']}"), 404)
    for file in other["spec"]["inputs"].values():
        assert (adapters_dir / file["path"]).is_file()
    http.delete(f"/jobs/{other['id']}")
    for file in other["spec"]["inputs"].values():
        assert not (adapters_dir / file["path"]).parent.exists(), "nobody reads it any more"


def test_what_runs_or_is_needed_stays(http, ended, hands, ledger, adapters_dir):
    job = ended()
    running = http.post("/jobs", json=TINY).json()
    told = error(http.delete(f"/jobs/{running['id']}"), 409)
    assert f"Job {running['id']} is queued" in told["message"]
    assert "loco cancel" in told["hint"]
    claim = hands.claim(Stage.PREPARE)
    reused = ledger.task(f"{job['id']}-prepare")
    ledger.commit(
        claim.task_id,
        claim.token,
        result={},
        artifacts=reused.artifacts,
        fingerprint="f",
        reused_from=job["id"],
    )
    http.post(f"/jobs/{running['id']}/cancel")
    replayed = http.post(f"/jobs/{job['id']}/replay").json()
    http.post(f"/jobs/{replayed['id']}/cancel")
    built = http.post("/jobs", json={**TINY, "stages": ["export"], "from_job": job["id"]}).json()
    http.post(f"/jobs/{built['id']}/cancel")
    told = error(http.delete(f"/jobs/{job['id']}"), 409)["message"]
    names = {
        f"job {running['id']} (reuses its stages)",
        f"job {replayed['id']} (replays it)",
        f"job {built['id']} (builds on it)",
    }
    assert all(name in told for name in names)
    assert set(http.get(f"/jobs/{job['id']}/removal").json()["needed_by"]) == names
    assert (adapters_dir / "math/runs" / job["id"]).is_dir()
    for other in (running, replayed, built):
        assert http.delete(f"/jobs/{other['id']}").status_code == 200
    assert http.delete(f"/jobs/{job['id']}").status_code == 200


def test_a_registered_version_keeps_its_job(http, ledger, spec):
    job = Builder(ledger, spec).registered(stages=("prepare", "train", "export", "register"))
    told = error(http.delete(f"/jobs/{job.id}"), 409)
    assert "is needed by version 1 of math" in told["message"]


def test_who_builds_on_a_job_that_goes_meanwhile_hears_of_it(http, ended, ledger, hands, spec):
    """The look at who needs a job happens before the script that deletes it."""
    job = ended()
    http.post("/jobs", json=TINY)
    claim = hands.claim(Stage.PREPARE)
    known = ledger.job(job["id"])
    looked = ledger.removals.needed_by
    seen = []

    def look(of):
        found = looked(of)
        if not seen:  # between the look and the script somebody takes the rows over
            ledger.commit(
                claim.task_id,
                claim.token,
                result={},
                artifacts=(),
                fingerprint="f",
                reused_from=job["id"],
            )
        seen.append(found)
        return found

    ledger.removals.needed_by = look
    with pytest.raises(Conflict, match="reuses its stages"):
        remove(ledger, hands._adapters_dir, known)
    assert seen[0] == ()
    assert ledger.job(job["id"]).id == job["id"]


def test_nothing_is_taken_over_from_a_deleted_job(http, ended, ledger, hands, spec):
    job = ended()
    http.delete(f"/jobs/{job['id']}")
    http.post("/jobs", json=TINY)
    claim = hands.claim(Stage.PREPARE)
    answer = ledger.commit(
        claim.task_id, claim.token, result={}, artifacts=(), fingerprint="f", reused_from=job["id"]
    )
    assert answer is CommitAnswer.GONE, "it runs by itself"
    with pytest.raises(Conflict, match="was deleted in the meantime"):
        ledger.submit(spec(stages=("export",), from_job=job["id"]))


def test_a_key_of_a_deleted_job_makes_a_new_one(http, ended, hands):
    headers = {"Idempotency-Key": "nightly"}
    first = http.post("/jobs", json=TINY, headers=headers).json()
    http.post(f"/jobs/{first['id']}/cancel")
    http.delete(f"/jobs/{first['id']}")
    again = http.post("/jobs", json=TINY, headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] != first["id"]


def test_a_crash_between_ledger_and_files_is_made_good(http, ended, ledger, adapters_dir):
    job = ended()
    run = adapters_dir / "math" / "runs" / job["id"]
    aside = run.with_name("aside")
    run.rename(aside)
    run.symlink_to(adapters_dir / "math")  # nobody else's folder is deleted in its place
    told = error(http.delete(f"/jobs/{job['id']}"), 409)
    assert told["code"] == "unsafe_path"
    run.unlink()
    aside.rename(run)
    known = ledger.job(job["id"])
    ledger.removals.remove(
        known,
        removing._measured(ledger, adapters_dir, known, removing._leftover(ledger, known)),
        removing._leftover(ledger, known),
    )  # and here the process died
    assert run.is_dir()
    assert http.delete(f"/jobs/{job['id']}").json()["cleared"] is False
    clear_removed(ledger, adapters_dir)
    assert not run.exists()
    assert http.delete(f"/jobs/{job['id']}").json()["cleared"] is True
    clear_removed(ledger, adapters_dir)


def test_a_folder_that_a_newer_replay_publishes_to_stays(http, ended, ledger, adapters_dir):
    """Before: a replay that came between the deletion and the clearing of its files lost them."""
    job = ended()
    first = http.post(f"/jobs/{job['id']}/replay").json()
    http.post(f"/jobs/{first['id']}/cancel")
    published = adapters_dir / "math" / first["spec"]["place"]
    published.mkdir(parents=True)
    known = ledger.job(first["id"])
    leftover = removing._leftover(ledger, known)
    assert f"math/{first['spec']['place']}" in leftover.folders
    measured = removing._measured(ledger, adapters_dir, known, leftover)
    ledger.removals.remove(known, measured, leftover)
    newer = http.post(f"/jobs/{job['id']}/replay").json()
    assert newer["spec"]["place"] == first["spec"]["place"]
    clear_removed(ledger, adapters_dir)
    assert published.is_dir()
    assert http.delete(f"/jobs/{first['id']}").json()["cleared"] is True
    http.post(f"/jobs/{newer['id']}/cancel")
    http.delete(f"/jobs/{newer['id']}")
    assert not published.exists(), "it goes with the last one"


def test_a_job_is_deleted_by_its_owner_and_admins_alone(live_api, http, redis_url, namespace):
    keys = Keys.connect(redis_url, namespace=namespace)
    bearer = {
        name: {"Authorization": f"Bearer {keys.create(name, scope=scope)[1]}"}
        for name, scope in {"anna": Scope.SUBMIT, "ben": Scope.SUBMIT, "root": Scope.ADMIN}.items()
    }
    job = http.post("/jobs", json=TINY, headers=bearer["anna"]).json()["id"]
    http.post(f"/jobs/{job}/cancel", headers=bearer["anna"])
    assert http.delete(f"/jobs/{job}", headers=bearer["ben"]).status_code == 403
    assert http.delete(f"/jobs/{job}", headers=bearer["anna"]).status_code == 200
    assert http.delete(f"/jobs/{job}", headers=bearer["ben"]).status_code == 404
    assert http.delete(f"/jobs/{job}", headers=bearer["root"]).status_code == 200
    trail = http.get("/audit", headers=bearer["root"]).json()["data"]
    deleted = [e for e in trail if e["action"] == "deleteJob"]
    assert [(e["by"], e["status"], e["target"]) for e in deleted][-1:] == [
        ("anna", 200, f"/jobs/{job}")
    ]
    keys.close()


def test_inputs_stay_while_a_record_that_may_name_them_cannot_be_read(
    http, ended, ledger, adapters_dir
):
    job, other = ended(), ended()
    (adapters_dir / "math" / "eval_dataset.jsonl").write_text("")
    with ledger._connection.client() as client:
        client.hset(f"{ledger.namespace}:job:{other['id']}", "spec", "no JSON")
    assert http.delete(f"/jobs/{job['id']}").json()["cleared"]
    kept = [adapters_dir / file["path"] for file in job["spec"]["inputs"].values()]
    assert kept
    assert all(file.is_file() for file in kept)
