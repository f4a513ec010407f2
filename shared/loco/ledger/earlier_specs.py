"""Specs of jobs that an earlier release accepted, in the words of this one.

Read with today's defaults they would mean something else: such a job may still be queued or be
retried, and it has to do what it was asked for.
"""

from collections.abc import Mapping
from typing import Any

#: The eval problems of a spec that names none, and the seed of generated ones, as that release had them.
_BENCHMARK = "eval_dataset.jsonl"
_SEED = 20_261_122


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A stored spec with what this release calls otherwise; one of this release comes back as it is.

    Before sets of problems had roles, prepare kept the rows apart from `prepare.benchmark` and the
    generated `prepare.held_out`, and eval asked `eval.benchmark` and the latter. Before the gate,
    register pointed `latest` at whatever it had made. No such job asked a gate to promote it, so its
    gate says `never`: people promote what it makes.

    Args:
        document: the JSON of a `JobSpec`; fields that this release does not know may remain.
    """
    prepare, measured = dict(document["prepare"]), dict(document["eval"])
    held_out = prepare.get("held_out")
    if "eval_sets" not in prepare:
        prepare["eval_sets"] = _sets(prepare.get("benchmark"), held_out)
    if "sets" not in measured:
        sets = _sets(measured.get("benchmark"), held_out)
        deciding = "held_out" if held_out else "benchmark"
        measured["sets"] = {
            name: source | {"role": "primary" if name == deciding else "shown"}
            for name, source in sets.items()
        }
    if "gate" not in measured:
        measured["gate"] = {"policy": "never"}
    return {**document, "prepare": prepare, "eval": measured}


def _sets(benchmark: str | None, held_out: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    source = {"kind": "jsonl", "path": benchmark or _BENCHMARK}
    sets: dict[str, dict[str, Any]] = {"benchmark": {"source": source}}
    if held_out:
        sets["held_out"] = {
            "source": held_out["source"],
            "count": held_out.get("count", 100),
            "seed": held_out.get("seed", _SEED),
        }
    return sets
