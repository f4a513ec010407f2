"""Jobs that wait: until a time, in line, and what of it they took."""

import json
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from loco.cli.moments import absolute, moment
from loco.contracts.errors import InvalidRequest
from loco.contracts.jobs import WorkerInfo
from loco.contracts.stages import Queue, Stage
from loco.planning.waiting import waiting

TINY = {"profile": "tiny", "stages": ["prepare", "train"]}
NOW = datetime(2026, 11, 28, 21, 30, tzinfo=ZoneInfo("Europe/Berlin"))


def test_a_time_is_what_a_person_means_by_it(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert absolute("22:00", NOW).isoformat() == "2026-11-28T22:00:00+01:00"
        assert absolute("6:05", NOW).isoformat() == "2026-11-29T06:05:00+01:00"
        assert absolute("2026-07-01 06:30", NOW).isoformat() == "2026-07-01T06:30:00+02:00"
        assert absolute("2026-12-24T06:30Z", NOW) == datetime(2026, 12, 24, 6, 30, tzinfo=UTC)
        assert absolute("90m", NOW) - NOW == timedelta(minutes=90)
        before_dst = datetime(2026, 10, 24, 23, 0).astimezone()
        assert absolute("22:00", before_dst).isoformat() == "2026-10-25T22:00:00+01:00"
        assert moment(absolute("22:00", NOW), NOW) == "22:00"
        assert moment(absolute("6:05", NOW), NOW) == "2026-11-29 06:05"
    finally:
        monkeypatch.undo()
        time.tzset()
    for wrong in ("25:00", "soon", "", "9999999d", "22", "10:00:00:00", "99999-01-01"):
        with pytest.raises(InvalidRequest, match="--after"):
            absolute(wrong, NOW)


@pytest.mark.redis
def test_a_job_waits_for_its_time_and_not_longer(run, client, ledger, connect):
    code, out, told = run("submit", "math", "--profile", "tiny", "--after", "2h", "--json")
    assert code == 0, told
    job = json.loads(out)
    begins = datetime.fromisoformat(job["not_before"])
    assert timedelta(minutes=119) < begins - datetime.now(UTC) < timedelta(minutes=121)
    assert (job["status"], job["waiting"]["position"]) == ("queued", None)
    assert ledger.claim(Queue.CPU, worker_id="w", nonce="1") is None
    assert f"after {moment(begins)}" in run("jobs")[1]
    assert f"waits until {moment(begins)}" in run("job", "last")[1]
    assert run("cancel", "last")[0] == 0
    assert client.job(job["id"]).status == "cancelled"
    assert ledger.reap() == []

    soon = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()
    second = client.submit("math", not_before=soon, **TINY)
    assert ledger.claim(Queue.CPU, worker_id="w", nonce="2") is None
    hints, deadline = [], time.monotonic() + 60
    while not hints and time.monotonic() < deadline:
        hints = [h.job_id for h in connect().reap()]  # the API's own reaper may be quicker
        claimed = ledger.claim(Queue.CPU, worker_id="w", nonce="3")
        if claimed is not None:
            assert claimed.job_id == second.id
            break
        time.sleep(0.1)
    assert claimed is not None or hints == [second.id]
    assert client.job(second.id).created_at < datetime.fromisoformat(soon)


@pytest.mark.redis
def test_a_time_that_nobody_means_is_refused(run, client):
    code, _, told = run("submit", "math", "--after", "500d")
    assert (code, "more than a year ahead" in told) == (2, True)
    with pytest.raises(InvalidRequest, match="not_before"):
        client.submit("math", not_before="2026-12-24T06:30:00")  # whose clock?
    past = client.submit("math", not_before="2020-01-01T00:00:00Z", **TINY)
    assert client.job(past.id).waiting.position == 1
    assert list(client.jobs()) == [past.model_copy(update={"waiting": None})]


@pytest.mark.redis
def test_the_line_is_told_with_times_where_earlier_runs_know_them(
    run, client, hands, ledger, monkeypatch
):
    monkeypatch.setattr("loco.planning.waiting._KEPT", -1.0)
    first = client.submit("math", **TINY)
    assert client.job(first.id).waiting.model_dump() == {
        "stage": Stage.PREPARE,
        "queue": Queue.CPU,
        "position": 1,
        "running": 0,
        "starts_in_seconds": None,
        "ends_in_seconds": None,
    }, "no worker, so nobody knows"
    claim = hands.claim(Stage.PREPARE)
    ledger.heartbeat(
        WorkerInfo(
            id="hands", queue="cpu", host="h", pid=1, device="cpu", seen_at=datetime.now(UTC)
        )
    )
    second, third = (client.submit("math", **TINY) for _ in range(2))
    assert client.job(third.id).waiting.starts_in_seconds is None, "no run is known yet"
    hands.commit(claim, {"seconds": 40.0})
    read = client.job(second.id)
    claim = hands.claim(Stage.PREPARE)
    assert claim.job_id == second.id
    assert waiting(ledger, read) is None, "a worker has taken it since it was read"
    hands.progress(claim, percent=50, eta_seconds=12)
    told = client.job(third.id).waiting
    assert (told.position, told.running, told.starts_in_seconds) == (1, 1, 12.0)
    assert told.ends_in_seconds is None, "no training is known"
    fourth = client.submit("math", **TINY)
    assert (fourth.waiting.position, fourth.waiting.starts_in_seconds) == (2, 52.0)
    assert "number 2 in line, starts in about 52 s" in run("job", fourth.id)[1]
    urgent = client.submit("math", priority=9, **TINY)
    assert urgent.waiting.position == 1
    assert client.job(fourth.id).waiting.position == 3
    assert client.job(second.id).waiting is None


@pytest.mark.redis
def test_waiting_is_not_what_a_job_took(run, client, hands, ledger):
    job = client.submit("math", profile="tiny", stages=["prepare"])
    time.sleep(1.2)
    claim = hands.claim(Stage.PREPARE)
    ledger.release(claim.task_id, claim.token)
    time.sleep(1.2)
    claim = hands.claim(Stage.PREPARE)
    began = time.monotonic()
    hands.commit(claim, {})
    ran = time.monotonic() - began
    ended = client.job(job.id)
    assert ended.took_seconds <= ran + 1.0 < 2.4
    assert (ended.finished_at - ended.created_at).total_seconds() > 2.4
    assert run("jobs")[1].splitlines()[1].split()[-2:] == [f"{ended.took_seconds:.1f}", "s"]


@pytest.mark.redis
def test_the_end_is_told_of(run, loco, client, tmp_path):
    job = client.submit("math", **TINY)
    code, _, told = run("submit", "math", "--notify")
    assert (code, "--notify needs --wait" in told) == (2, True)
    code, _, told = run("watch", "last", "--notify-command", "no-such-program now")
    assert (code, "there is no such program" in told) == (2, True)
    client.cancel(job.id)
    sender = tmp_path / "notify-send"
    sender.write_text(f'#!/bin/sh\necho "$3" > {tmp_path}/shown\n')
    sender.chmod(0o755)
    words = f"sh -c 'echo $LOCO_JOB_ID $LOCO_JOB_STATUS > {tmp_path}/told; exit 3'"
    path = f"{tmp_path}:/usr/bin:/bin"
    told = loco("watch", "last", "--notify", "--notify-command", words, PATH=path)
    assert told.returncode == 1, "the job was cancelled"
    assert (tmp_path / "told").read_text() == f"{job.id} cancelled\n"
    assert (tmp_path / "shown").read_text().startswith(f"Job {job.id}  math (tiny)  cancelled")
    assert "sh ended with exit code 3" in told.stderr
