"""`loco logs`: the log of each attempt, also while it is written, and nothing but logs."""

import json
import os
import time

import pytest

from loco.contracts.errors import InvalidRequest, NotFound, UnsafePath
from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis

TINY = {"profile": "tiny", "stages": ["prepare", "train"]}


@pytest.fixture
def attempt(hands, adapters_dir):
    """Begins an attempt of the stage that is due, with a log; gives the claim and the log's path."""

    def begin(stage: Stage, text: bytes):
        claim = hands.claim(stage)
        log = adapters_dir / "math" / "runs" / claim.job_id / stage / f"a{claim.token}/stage.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(text)
        return claim, log

    return begin


def test_every_attempt_keeps_its_log(run, client, hands, attempt):
    job = client.submit("math", **TINY)
    code, _, told = run("logs", "last")
    assert (code, f"Stage prepare of job {job.id} has no log yet: it is queued" in told) == (
        2,
        True,
    )
    claim, _ = attempt(Stage.PREPARE, b"read 7 rows\n")
    hands.ledger.release(claim.task_id, claim.token)
    claim, _ = attempt(Stage.PREPARE, "10 %\r20 %\r\nänder\x1b[2J\n".encode())
    hands.commit(claim, {}, {})
    code, out, told = run("logs", "last")
    assert out == "10 %\n20 %\nänder\\x1b[2J\n", "a terminal obeys none of it"
    assert "prepare, attempt 2 of 2" in told
    assert run("logs", "last", "prepare", "--attempt", "1")[1] == "read 7 rows\n"
    code, _, told = run("logs", "last", "prepare", "--attempt", "3")
    assert (code, "logs of 2 attempts" in told) == (2, True)
    page = json.loads(run("logs", job.id, "prepare", "--attempt", "1", "--json")[1])
    assert (page["text"], page["ended"]) == ("read 7 rows\n", True)
    code, _, told = run("logs", "last", "export")
    assert (code, "has no stage export" in told) == (2, True)


def test_nothing_waits_for_a_stage_that_will_not_run(run, client, attempt):
    job = client.submit("math", **TINY)
    attempt(Stage.PREPARE, b"read 7 rows\n")
    client.cancel(job.id)
    client.submit("math", **TINY)
    never = client.jobs()
    client.cancel(next(iter(never)).id)
    code, _, told = run("logs", "last", "train")
    assert code == 2
    assert "has no log: it did not run before the job was cancelled" in told
    assert "--follow" not in told, "nothing is coming"


def test_a_log_is_followed_over_attempts_and_stages_to_the_jobs_end(
    started, client, hands, attempt
):
    client.submit("math", **TINY)
    process = started("logs", "last", "--follow")
    claim, log = attempt(Stage.PREPARE, b"one\n")
    assert process.stdout.readline() == "one\n"
    with log.open("ab") as file:
        file.write("two ü\n".encode())
    assert process.stdout.readline() == "two ü\n"
    hands.ledger.release(claim.task_id, claim.token)
    claim, _ = attempt(Stage.PREPARE, b"again\n")
    assert process.stdout.readline() == "again\n"
    hands.commit(claim, {}, {})
    claim, _ = attempt(Stage.TRAIN, b"loss 2\n")
    assert process.stdout.readline() == "loss 2\n"
    hands.fail(claim, "no more")
    assert process.wait(30) == 0
    said = process.stderr.read()
    assert "prepare, attempt 2 of 2:" in said
    assert "train, attempt 1 of 1:" in said


def test_a_page_never_cuts_a_character(client, attempt):
    job = client.submit("math", **TINY)
    _, log = attempt(Stage.PREPARE, "ü".encode() * 600 + b"\xc3")
    page = client.log(job.id, "prepare")
    assert (page.text, page.next_offset, page.size, page.ended) == ("ü" * 600, 1200, 1201, False)
    with log.open("ab") as file:
        file.write(b"\xbc!")
    assert client.log(job.id, "prepare", offset=1200).text == "ü!"
    log.write_bytes(b"cut\n")
    page = client.log(job.id, "prepare", offset=1203)
    assert (page.text, page.next_offset) == ("", 4), "a log that ran over is cut; reading continues"
    with pytest.raises(InvalidRequest, match="offset"):
        client.log(job.id, "prepare", offset=2**60)


def test_what_is_no_log_is_not_read(client, attempt, adapters_dir, tmp_path):
    job = client.submit("math", **TINY)
    (tmp_path / "secret").write_text("key")
    _, log = attempt(Stage.PREPARE, b"")
    log.unlink()
    log.symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafePath):
        client.log(job.id, "prepare")
    log.unlink()
    os.mkfifo(log)
    asked = time.monotonic()
    assert client.log(job.id, "prepare").attempts == 0
    assert time.monotonic() - asked < 20, "a pipe blocks nobody"
    log.parent.parent.rename(log.parent.parent.with_name("gone"))
    assert client.log(job.id, "prepare").text == ""
    with pytest.raises(NotFound):
        client.log("nope", "prepare")
