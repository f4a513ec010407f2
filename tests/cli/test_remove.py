"""`loco rm`: says what goes and what stands against it."""

import json

import pytest

from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis

TINY = {"profile": "tiny", "stages": ["prepare", "train"]}


def test_ended_jobs_are_deleted_and_the_needed_one_says_by_whom(run, client, hands, adapters_dir):
    job = client.submit("math", **TINY)
    hands.commit(hands.claim(Stage.PREPARE), {}, {"training_data.jsonl": b"r" * 5000})
    code, _, told = run("rm", "last")
    assert (code, "is running. Only ended jobs" in told) == (2, True)
    assert run("rm", "last", "--dry-run") == (code, "", told), "a dry run says the same"
    client.cancel(job.id)
    replayed = client.replay(job.id)
    client.cancel(replayed.id)
    code, out, _ = run("rm", job.id[-6:], "--dry-run")
    assert code == 0
    assert out == f"Job {job.id} cannot be deleted. Needed by:\n  job {replayed.id} (replays it)\n"
    code, _, told = run("rm", job.id)
    assert (code, f"is needed by job {replayed.id} (replays it)" in told) == (2, True)
    code, out, _ = run("rm", replayed.id, "--dry-run")
    assert out == f"Job {replayed.id} would free 0 B in 0 files.\n"
    code, out, told = run("rm", job.id, replayed.id)
    assert code == 0, told
    assert [line.split()[1] for line in out.splitlines()] == [replayed.id, job.id], "newest first"
    assert "in all" in told
    again = json.loads(run("rm", job.id, "--json")[1])
    assert [entry["job_id"] for entry in again] == [job.id], "said twice, it is one deletion"
    assert list(client.jobs()) == []
    assert not (adapters_dir / "math" / "runs" / job.id).exists()
    assert run("rm", "last")[0] == 2
