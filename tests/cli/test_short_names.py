"""Jobs named in short, files by pattern, and what Tab offers."""

import time

import pytest

from loco import Client
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.keys import Scope
from loco.contracts.stages import Stage
from loco.ledger.keys import Keys

pytestmark = pytest.mark.redis

TINY = {"profile": "tiny", "stages": ["prepare", "train"]}


def test_a_few_characters_and_last_name_a_job(run, client):
    first, second = client.submit("math", **TINY), client.submit("math", **TINY)
    for short in (second.id, "last", second.id[-6:], second.id[-6:-1]):
        assert run("job", "--json", short)[1].startswith(f'{{\n  "id": "{second.id}"'), short
    assert client.job_id(first.id[-6:-1]) == first.id
    code, _, told = run("job", first.id[:6])
    assert code == 2
    assert f"matches several jobs: {second.id} (math, queued), {first.id}" in told
    assert "last six characters" in told
    code, _, told = run("cancel", "zzz")
    assert (code, "No job 'zzz'" in told) == (2, True)
    assert run("diff", "last", first.id[-6:])[0] == 0
    assert run("cancel", "last")[0] == 0
    assert client.job(second.id).status == "cancelled"
    assert run("retry", "last")[0] == 0
    with pytest.raises(NotFound):
        client.job_id("")
    with pytest.raises(InvalidRequest, match="limit"):
        client.job_lines(limit=1000)


def test_last_is_ones_own(live_api, redis_url, namespace):
    keys = Keys.connect(redis_url, namespace=namespace)
    anna, ben = (keys.create(n, scope=Scope.SUBMIT)[1] for n in ("anna", "ben"))
    keys.close()
    with Client(live_api.url, anna) as mine, Client(live_api.url, ben) as other:
        with pytest.raises(NotFound, match="no job yet"):
            mine.job_id("last")
        job = mine.submit("math", **TINY)
        newer = other.submit("math", **TINY)
        assert (mine.job_id("last"), other.job_id("last")) == (job.id, newer.id)
        assert [line.id for line in mine.job_lines()] == [newer.id, job.id]
        assert mine.job_lines(mine=True)[0].owner == "anna"


def test_files_are_chosen_by_pattern_and_by_stage(run, client, hands):
    job = client.submit("math", **TINY)
    hands.commit(hands.claim(Stage.PREPARE), {}, {"training_data.jsonl": b"1", "held.jsonl": b"2"})
    files = {"checkpoints/a/model.safetensors": b"3", "log.json": b"4"}
    hands.commit(hands.claim(Stage.TRAIN), {}, files)

    def listed(*names: str) -> list[str]:
        code, out, told = run("artifacts", "last", *names)
        assert code == 0, told
        return [line.split()[0] for line in out.splitlines()[1:]]

    assert listed("train") == ["train/checkpoints/a/model.safetensors", "train/log.json"]
    assert set(listed("prepare/*.jsonl")) == {"prepare/held.jsonl", "prepare/training_data.jsonl"}
    assert listed("checkpoints/*") == ["train/checkpoints/a/model.safetensors"]
    assert {"inputs/adapter.yaml", "train/log.json"} <= set(listed("train/*.json", "inputs"))
    code, _, told = run("artifacts", job.id, "gguf/*")
    assert (code, "has no artifact 'gguf/*'" in told) == (2, True)


def completed(loco, line: str, **more: str) -> list[str]:
    """What bash is offered for the word that the cursor is at the end of."""
    words = line.split(" ")
    told = loco(
        _LOCO_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        **more,
    )
    assert told.stderr == ""
    return told.stdout.split()


def test_tab_offers_what_the_server_has(loco, client):
    job = client.submit("math", **TINY)
    assert completed(loco, "loco watch ") == [job.id, "last"]
    assert completed(loco, f"loco watch {job.id[:12]}") == [job.id]
    assert completed(loco, "loco retry 2") == [], "it has not stopped"
    assert completed(loco, "loco submit m") == ["math"]
    assert {"default", "tiny"} <= set(completed(loco, "loco submit math --profile "))
    assert "inputs/adapter.yaml" in completed(loco, "loco artifacts last inp")
    assert set(completed(loco, "loco vers")) == {"version", "versions"}


def test_tab_is_silent_and_quick_without_a_server(loco, serve, free_port):
    asked = time.monotonic()
    nobody = f"http://127.0.0.1:{free_port}"
    assert completed(loco, "loco watch ", LOCO_SERVER=nobody) == ["last"]
    assert completed(loco, "loco submit ", LOCO_SERVER="no address") == []
    assert time.monotonic() - asked < 30, "it waits for nobody"


def test_version_is_an_option_too(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("loco 0.")
