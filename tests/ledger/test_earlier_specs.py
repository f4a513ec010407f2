"""Jobs that the release before gates and sets of problems accepted do what they were asked for.

tests/fixtures/specs_before_gate.json holds what that release's own code stored for the recipe `math`:
profile `default`, and profile `tiny` with `register: {promote: false}`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from loco.contracts.evaluation import ItemSource, Role
from loco.contracts.jobs import Job
from loco.contracts.sources import ArithmeticSource, JsonlSource
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue
from loco.ledger.earlier_specs import upgraded
from loco.ledger.ledger import Ledger
from loco.ledger.views import job_view
from loco.running.attempt import stage_run
from loco.settings import Settings

STORED = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "specs_before_gate.json").read_bytes()
)
FIELDS = {
    "id": "j",
    "adapter": "math",
    "profile": "tiny",
    "status": "queued",
    "priority": "0",
    "metadata": "{}",
    "cancel_requested": "0",
    "created_at": "1795359874974",
}
BENCHMARK = JsonlSource(kind="jsonl", path="eval_dataset.jsonl")
HELD_OUT = ArithmeticSource(kind="arithmetic")


def view(document: dict[str, Any]) -> Job:
    return job_view({**FIELDS, "spec": json.dumps(document)}, [])


def changed(profile: str, stage: str, **fields: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(STORED[profile]))
    document[stage] |= fields
    return dict(document)


def test_generated_problems_decide_and_the_benchmark_is_shown() -> None:
    spec = view(STORED["tiny"]).spec
    sets = spec.eval.sets
    assert {name: s.role for name, s in sets.items()} == {
        "benchmark": Role.SHOWN,
        "held_out": Role.PRIMARY,
    }
    assert (sets["benchmark"].source, sets["benchmark"].count) == (BENCHMARK, "all")
    assert (sets["held_out"].source, sets["held_out"].count) == (HELD_OUT, 100)
    assert sets["held_out"].seed == STORED["tiny"]["prepare"]["held_out"]["seed"]
    assert spec.prepare.eval_sets == {
        "benchmark": ItemSource(source=BENCHMARK),
        "held_out": ItemSource(source=HELD_OUT, count=100, seed=sets["held_out"].seed),
    }


def test_without_generated_problems_the_benchmark_decides() -> None:
    spec = view(STORED["default"]).spec
    assert [(name, s.role) for name, s in spec.eval.sets.items()] == [("benchmark", Role.PRIMARY)]
    assert spec.prepare.eval_sets == {"benchmark": ItemSource(source=BENCHMARK)}


def test_the_files_they_named_are_read() -> None:
    document = changed("tiny", "prepare", benchmark="apart.jsonl")
    document["eval"]["benchmark"] = "asked.jsonl"
    spec = view(document).spec
    kept_apart, asked = spec.prepare.eval_sets["benchmark"], spec.eval.sets["benchmark"]
    assert kept_apart.source == JsonlSource(kind="jsonl", path="apart.jsonl")
    assert asked.source == JsonlSource(kind="jsonl", path="asked.jsonl")


def test_count_and_seed_of_generated_problems_stay() -> None:
    document = changed("tiny", "prepare", held_out={"source": {"kind": "arithmetic"}})
    document["prepare"]["held_out"] |= {"count": 7, "seed": 3}
    spec = view(document).spec
    for held_out in (spec.prepare.eval_sets["held_out"], spec.eval.sets["held_out"]):
        assert (held_out.count, held_out.seed) == (7, 3)


@pytest.mark.parametrize("profile", ["default", "tiny"])
def test_no_gate_promotes_them(profile: str) -> None:
    assert view(STORED[profile]).spec.eval.gate.policy == "never"


def test_they_trained_on_the_rows_as_they_came_and_answered_in_so_many_tokens() -> None:
    """Whatever profile default and the defaults of the stages say today."""
    spec = view(STORED["default"]).spec
    assert (spec.prepare.source.kind, spec.prepare.base_model) == ("huggingface", None)
    assert spec.train.preference is None
    for part in (spec.export, spec.register_, spec.eval):
        assert part.num_predict == 512


def test_all_else_is_as_it_was_stored() -> None:
    spec = json.loads(view(STORED["tiny"]).spec.model_dump_json(by_alias=True))
    for stage in ("prepare", "train", "export", "register", "eval"):
        told = STORED["tiny"][stage]
        gone = {"benchmark", "held_out", "promote"} & told.keys()
        kept = {k: v for k, v in told.items() if k not in gone}
        if base := kept.pop("base_model", None):  # it has more to say in this release
            assert base.items() <= spec[stage]["base_model"].items()
        assert kept.items() <= spec[stage].items()


def test_a_spec_of_this_release_stays_as_it_is(spec: Callable[..., JobSpec]) -> None:
    for gate in ({}, {"policy": "always"}):
        document = json.loads(spec(eval={"gate": gate}).model_dump_json(by_alias=True))
        assert upgraded(document) == document


@pytest.mark.redis
def test_a_job_queued_over_the_upgrade_runs_as_it_was_asked(
    ledger: Ledger,
    settings: Settings,
    spec: Callable[..., JobSpec],
    redis_url: str,
    namespace: str,
) -> None:
    job, _ = ledger.submit(spec())
    client = Redis.from_url(redis_url)
    keys = [k for k in client.scan_iter(f"*{namespace}*{job.id}*") if client.type(k) == b"hash"]
    (key,) = (k for k in keys if client.hexists(k, "spec"))
    client.hset(key, "spec", json.dumps(STORED["tiny"]))
    client.close()
    claim = ledger.claim(Queue.CPU, worker_id="w", nonce="n")
    assert claim is not None
    assert set(stage_run(ledger, settings, claim).spec["eval_sets"]) == {"benchmark", "held_out"}
    assert ledger.job(job.id).spec.eval.gate.policy == "never"
