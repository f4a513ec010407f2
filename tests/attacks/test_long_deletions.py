"""Deleting a job among many large ones.

One script looked for what is newest afterwards, and decoded the spec (64 KiB at most) of every job of the
adapter once for each stage of the deleted one: Redis answered nobody meanwhile.
"""

from collections.abc import Callable

import pytest
from live_api import Hands
from redis import Redis

from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.ledger import Ledger

pytestmark = pytest.mark.redis

Specs = Callable[..., JobSpec]
#: Decodes what the script decoded, to know how long that takes here.
_DECODE = "for _ = 1, tonumber(ARGV[1]) do cjson.decode(redis.call('HGET', KEYS[1], 'spec')) end"
_STAGES = (Stage.PREPARE, Stage.TRAIN)
_OTHERS = 60


def ended(ledger: Ledger, hands: Hands, spec: JobSpec) -> str:
    job, _ = ledger.submit(spec)
    for stage in spec.stages:
        hands.commit(hands.claim(stage), {})
    return job.id


def computed(client: Redis) -> float:
    """Seconds that Redis has computed: what else runs on the machine does not count."""
    told = client.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


def remove(ledger: Ledger, job_id: str) -> float:
    """Seconds that Redis computes for the script."""
    with ledger._connection.client() as client:
        counts = client.mget(f"{ledger.namespace}:seq", f"{ledger.namespace}:commits")
        began = computed(client)
        told = ledger.removals._run("remove", job_id, *map(str, counts), "{}", "{}", 1000)
        assert told == "removed"
        return computed(client) - began


def test_specs_of_other_profiles_are_not_decoded(ledger: Ledger, hands: Hands, spec: Specs) -> None:
    other = ended(ledger, hands, spec(profile="default", stages=_STAGES))
    job_id = ended(ledger, hands, spec(stages=_STAGES))
    ns = ledger.namespace
    large = spec(stages=_STAGES).model_dump_json()[:-1] + ',"x":[' + "0," * 30_000 + "0]}"
    with ledger._connection.client() as client:
        client.hset(f"{ns}:job:{other}", "spec", large)
        for n in range(_OTHERS):
            client.copy(f"{ns}:job:{other}", f"{ns}:job:other-{n}")
            client.zadd(f"{ns}:jobs:adapter:math", {f"other-{n}": n + 0.5})
            for stage in _STAGES:
                client.copy(f"{ns}:task:{other}-{stage}", f"{ns}:task:other-{n}-{stage}")
        began = computed(client)
        client.eval(_DECODE, 1, f"{ns}:job:{other}", _OTHERS)
        decoding = computed(client) - began
    assert remove(ledger, job_id) < decoding / 2
    assert ledger.newest("math", "tiny", Stage.TRAIN) is None
    assert ledger.newest("math", "default", Stage.TRAIN) == other


def test_each_stage_finds_its_own_newest_job(ledger: Ledger, hands: Hands, spec: Specs) -> None:
    trained = ended(ledger, hands, spec(stages=_STAGES))
    prepared = ended(ledger, hands, spec(stages=(Stage.PREPARE,)))
    point = ended(ledger, hands, spec(stages=(Stage.TRAIN,), from_job=trained))
    ended(ledger, hands, spec(profile="default", stages=_STAGES))
    job_id = ended(ledger, hands, spec(stages=_STAGES))
    with ledger._connection.client() as client:
        of_a_sweep = spec(stages=(Stage.TRAIN,)).model_copy(update={"sweep": "sweep-1"})
        client.hset(f"{ledger.namespace}:job:{point}", "spec", of_a_sweep.model_dump_json())
    remove(ledger, job_id)
    assert ledger.newest("math", "tiny", Stage.PREPARE) == prepared
    assert ledger.newest("math", "tiny", Stage.TRAIN) == trained
