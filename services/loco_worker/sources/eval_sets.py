"""The problems of eval sets: of a file, a hub dataset or a generator."""

from collections.abc import Mapping
from random import Random

from loco.contracts.errors import DataError
from loco.contracts.evaluation import ItemSource
from loco.contracts.sources import (
    ArithmeticSource,
    DatasetSource,
    JsonlSource,
    ReasoningGymSource,
    SplitSource,
)
from loco.contracts.specs import Inputs
from loco.datasets.overlap import OverlapIndex, normalise
from loco.grading.eval_items import EvalItem, eval_items, load_eval_items
from loco.recipes.data_files import data_file
from loco.stage.program import Emitter
from loco_worker.sources.hub import hub_table
from loco_worker.sources.sources import held_out_problems
from loco_worker.sources.uploaded import eval_values, rows_of

#: A generator that gave so many unusable problems in a row has no new ones left.
FRUITLESS = 2000


def read_sets(
    sets: Mapping[str, ItemSource], inputs: Inputs, index: OverlapIndex, emit: Emitter
) -> dict[str, list[EvalItem]]:
    """The problems of every set, which join the index; files come before generators.

    Rows that are held back are no matter of this: they are known once the training rows are.

    Raises:
        DataError: a set can't be read, or a generator has too few problems.
    """
    named = [name for name, wanted in sets.items() if not isinstance(wanted.source, SplitSource)]
    ordered = sorted(
        named, key=lambda n: isinstance(sets[n].source, ReasoningGymSource | ArithmeticSource)
    )
    return {name: _read(name, sets[name], inputs, index, emit) for name in ordered}


def _read(
    name: str, wanted: ItemSource, inputs: Inputs, index: OverlapIndex, emit: Emitter
) -> list[EvalItem]:
    source = wanted.source
    assert not isinstance(source, SplitSource)
    if isinstance(source, ReasoningGymSource | ArithmeticSource):
        return _generated(name, wanted, source, index, emit)
    if isinstance(source, JsonlSource):
        field = f"eval.sets.{name}.source.path"
        items = load_eval_items(data_file(source.path, inputs, field, emit.check_stop))
        where = source.path
    elif isinstance(source, DatasetSource):
        field = f"eval.sets.{name}.source.dataset"
        path, rows = rows_of(source, inputs, field, emit.check_stop)
        items = eval_items(eval_values(rows, path.name), path.name)
        where = path.name
    else:
        emit.progress(message=f"fetching {source.dataset} for {name}", last=True)
        table = hub_table(source, f"eval.sets.{name}.source")
        items = eval_items(enumerate(table.rows, start=1), f"{source.dataset} {source.split}")
        where = f"{source.dataset} {source.split}"
    items = _sample(name, wanted, items, where)
    for item in items:
        index.add(f"{name}/{item.id}", item.question)
    return items


def _sample(name: str, wanted: ItemSource, items: list[EvalItem], where: str) -> list[EvalItem]:
    """The problems asked for, in the order of their source: the same whatever job asks."""
    if wanted.count == "all":
        return items
    if len(items) < wanted.count:
        raise DataError(
            f"eval.sets.{name}: the recipe wants {wanted.count} problems, but {where} has "
            f"{len(items)}.",
            param=f"eval.sets.{name}.count",
            hint=f"Ask for {len(items)} or fewer, or for `all`.",
        )
    rng = Random(f"eval set {wanted.seed}")  # noqa: S311 (not for secrets)
    # the start of a shuffle, so that a smaller count asks a part of the same problems
    places = list(range(len(items)))
    rng.shuffle(places)
    return [items[place] for place in sorted(places[: wanted.count])]


def _generated(
    name: str,
    wanted: ItemSource,
    source: ReasoningGymSource | ArithmeticSource,
    index: OverlapIndex,
    emit: Emitter,
) -> list[EvalItem]:
    """Generated problems, none twice and none overlapping the index, which they then join."""
    emit.progress(message=f"generating {wanted.count} problems for {name}", last=True)
    chosen: list[tuple[EvalItem, str | None]] = []
    seen: set[str] = set()
    fruitless = 0
    for item, problem in held_out_problems(source, wanted.seed):
        question = normalise(item.question)
        if question in seen or problem in seen or index.match(item.question):
            fruitless += 1
            if fruitless == FRUITLESS:
                raise DataError(
                    f"Source {source.kind} gives only {len(chosen)} different held-out "
                    f"problems, but the recipe wants {wanted.count}.",
                    param=f"eval.sets.{name}.count",
                    hint=f"Ask for {len(chosen)} or fewer.",
                )
            continue
        fruitless = 0
        seen |= {question} | ({problem} if problem else set())
        chosen.append((item.model_copy(update={"id": f"h{len(chosen) + 1:04}"}), problem))
        if len(chosen) == wanted.count:
            break
        emit.check_stop()
    for item, problem in chosen:
        index.add(f"{name}/{item.id}", item.question, problem)
    return [item for item, _ in chosen]
