"""Uploaded data sets in a resolved spec: a name becomes the data set it means at submit."""

from collections.abc import Callable
from typing import Any

from loco.contracts.datasets import DataSet, Layout
from loco.contracts.errors import InvalidRequest, LocoError
from loco.contracts.sources import DatasetSource, SelfSource
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage


def settled(spec: JobSpec, find: Callable[[str], DataSet]) -> JobSpec:
    """The spec with every data set named by its ID, with its format and mapping.

    Args:
        spec: resolved.
        find: the data set of an ID or name.

    Raises:
        NotFound, Conflict: of `find`; `param` names the field.
        InvalidRequest: train.preference asks for pairs, and the rows are none.
    """
    layouts: list[Layout | None] = []

    def settle(source: Any, field: str) -> Any:
        if isinstance(source, SelfSource):
            questions = settle(source.questions, f"{field}.questions")
            return source.model_copy(update={"questions": questions})
        if not isinstance(source, DatasetSource):
            return source
        try:
            found = find(source.dataset)
        except LocoError as error:
            error.param = f"{field}.dataset"
            raise
        if field == "prepare.source":
            layouts.append(found.layout)
        return source.model_copy(
            update={
                "dataset": found.id,
                "format": found.format,
                "mapping": found.mapping if source.mapping is None else source.mapping,
            }
        )

    def settle_sets(sets: dict[str, Any]) -> dict[str, Any]:
        return {
            name: s.model_copy(update={"source": settle(s.source, f"eval.sets.{name}.source")})
            for name, s in sets.items()
        }

    prepare = spec.prepare.model_copy(
        update={
            "source": settle(spec.prepare.source, "prepare.source"),
            "validation_source": settle(
                spec.prepare.validation_source, "prepare.validation_source"
            ),
            "eval_sets": settle_sets(spec.prepare.eval_sets),
        }
    )
    trains = {Stage.PREPARE, Stage.TRAIN} <= set(spec.stages)
    if trains and spec.train.preference and layouts and layouts[0] is not Layout.PAIRS:
        raise InvalidRequest(
            f"train.preference needs pairs, but the rows of the data set are {layouts[0]}.",
            param="train.preference",
            hint="Push rows of prompt, chosen and rejected, or train without pairs: "
            "`--set train.preference=null`.",
        )
    evaluation = spec.eval.model_copy(update={"sets": settle_sets(spec.eval.sets)})
    return spec.model_copy(update={"prepare": prepare, "eval": evaluation})
