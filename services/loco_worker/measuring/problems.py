"""The problems of every eval set, and which of them a model may know from its training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loco.contracts.errors import DataError
from loco.contracts.evaluation import ItemSource
from loco.contracts.sources import JsonlSource, SplitSource
from loco.contracts.specs import EvalSpec, Inputs
from loco.contracts.stages import Stage
from loco.datasets.overlap import OverlapIndex
from loco.grading.eval_items import EvalItem, load_eval_items
from loco.stage.program import Emitter
from loco_worker.sources.eval_sets import read_sets

#: Words in a row that a problem and a training row may not share; as prepare's default.
NGRAM = 13
TRAINING_DATA = "prepare/training_data.jsonl"


def problem_sets(spec: EvalSpec, inputs: Inputs, emit: Emitter) -> dict[str, list[EvalItem]]:
    """The problems of every set: those prepare kept the training rows apart from, else read anew.

    Files are always read, as they were when this job was accepted: prepare may have run in an
    earlier job, with other content.

    Raises:
        DataError, SourceUnreachable, InvalidRequest: a set can't be read; names it.
    """
    told: dict[str, Any] = inputs.results.get(Stage.PREPARE, {}).get("eval_sources") or {}
    index = OverlapIndex(NGRAM)
    prepared: dict[str, list[EvalItem]] = {}
    for name, wanted in spec.sets.items():
        path = inputs.files.get(f"prepare/eval_sets/{name}.jsonl")
        if path is None or isinstance(wanted.source, JsonlSource):
            continue
        if _same(wanted, told.get(name)):
            prepared[name] = load_eval_items(path)
            for item in prepared[name]:
                index.add(f"{name}/{item.id}", item.question)
    missing = {name: s for name, s in spec.sets.items() if name not in prepared}
    for name in [name for name, s in missing.items() if isinstance(s.source, SplitSource)]:
        _check_held(name, told.get(name))
        prepared[name] = []
        del missing[name]
    found = prepared | read_sets(missing, inputs, index, emit)
    return {name: found[name][: spec.limit] for name in spec.sets}


def unmeasured(sets: Mapping[str, Sequence[EvalItem]], inputs: Inputs) -> list[str]:
    """Why nothing is asked of a set of rows held back, a sentence each."""
    held = inputs.results.get(Stage.PREPARE, {}).get("held_back") or {}
    why = f": {held['why']}" if held.get("why") else ""
    return [
        f"eval.sets.{name}: prepare held no row back{why}, so nothing was measured. Name an eval set of "
        "your own (docs/eval.md)."
        for name, items in sets.items()
        if not items
    ]


def contaminated(
    sets: Mapping[str, Sequence[EvalItem]], training_data: Path, emit: Emitter
) -> dict[str, set[str]]:
    """Set to the IDs of its problems that overlap a training row, by the rules of prepare.

    Args:
        sets: the problems.
        training_data: rows of `conversations`.
        emit: hears of stop requests.
    """
    index = OverlapIndex(NGRAM)
    places: dict[str, tuple[str, str]] = {}
    for name, items in sets.items():
        for item in items:
            places[f"{name}/{item.id}"] = name, item.id
            index.add(f"{name}/{item.id}", item.question)
    met: dict[str, set[str]] = {name: set() for name in sets}
    with training_data.open(encoding="utf-8") as rows:
        for number, line in enumerate(rows):
            if number % 100 == 0:
                emit.check_stop()
            turns = json.loads(line)["conversations"]
            asked = "\n".join(turn["content"] for turn in turns if turn["role"] == "user")
            for match in index.matches(asked):
                name, item_id = places[match.item]
                met[name].add(item_id)
    return met


def _check_held(name: str, told: Any) -> None:
    """Refuses a set that an earlier prepare did not know of; none of its rows is free of training."""
    if told is None or not isinstance(ItemSource.model_validate(told).source, SplitSource):
        raise DataError(
            f"eval.sets.{name} is of rows that prepare holds back, and the prepare that this job builds "
            "on held none back.",
            param=f"eval.sets.{name}.source",
            hint="Run all stages again, or name problems that the model was not trained on.",
        )


def _same(wanted: ItemSource, told: Any) -> bool:
    """Whether prepare took a set from where eval wants it."""
    if told is None:
        return False
    taken = ItemSource.model_validate(told)
    if isinstance(wanted.source, SplitSource):  # what prepare held back is all there is
        return isinstance(taken.source, SplitSource)
    return (taken.source, taken.count, taken.seed) == (wanted.source, wanted.count, wanted.seed)
