"""`loco rm`: says what goes and what stands against it."""

import json

import pytest
from versions import MODEL, Builder

from loco.contracts.evaluation import Verdict
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
    assert f"loco rm {replayed.id} {job.id}" in told
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


class TestVersions:
    @pytest.fixture
    def live_settings(self, live_settings, tags):
        return live_settings.model_copy(update={"ollama_host": tags.url})

    def test_a_version_is_deleted_then_its_job(self, run, ledger, spec, tags):
        build = Builder(ledger, spec)
        job = build.promoted()
        tags.models |= {f"{MODEL}:{job.id}": f"digest-{job.id}"}
        code, _, told = run("rm", job.id)
        assert (code, "loco rm math --version 1" in told) == (2, True)
        code, _, told = run("rm", job.id, "--dry-run")
        assert (code, "loco rm math --version 1" in told) == (0, True)
        code, _, told = run("rm", "math", "--version", "1")
        assert (code, "loco rm math --version 1 --force" in told) == (2, True)
        code, out, told = run("rm", "math", "--version", "1", "--force")
        assert code == 0, told
        assert out == (
            f"Version 1 of math is deleted: {MODEL}:{job.id} and {MODEL}:latest are gone.\n"
        )
        assert f"`loco rm {job.id}`" in told
        assert tags.models == {}
        assert run("rm", job.id)[0] == 0
        refused = build.measured(build.registered(), Verdict.REFUSED)
        again = json.loads(run("rm", "math", "--version", "2", "--json")[1])
        assert (again["job"], again["stopped"]) == (refused.id, False)

    def test_what_makes_no_sense_together_is_refused(self, run):
        for words, option in (
            (("math", "code", "--version", "1"), "--version"),
            (("math", "--version", "1", "--dry-run"), "--dry-run"),
            (("last", "--force"), "--force"),
        ):
            code, _, told = run("rm", *words)
            assert (code, option in told) == (2, True), told
