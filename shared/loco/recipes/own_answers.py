"""What a person gets wrong who turns a source of given rows into source self, or back."""

from collections.abc import Mapping
from typing import Any

from loco.contracts.errors import InvalidRequest
from loco.contracts.sources import (
    ArithmeticSource,
    HuggingFaceSource,
    JsonlSource,
    ReasoningGymSource,
    SelfSource,
)

_SOURCE = "prepare.source"
_OWN = frozenset(SelfSource.model_fields)
_GIVEN = frozenset(
    field
    for source in (HuggingFaceSource, JsonlSource, ReasoningGymSource, ArithmeticSource)
    for field in source.model_fields
)


def check_source(source: Any) -> None:
    """Refuses a source with fields of the other sort; everything else is left to validation.

    Args:
        source: the merged mapping of `prepare.source`; what is none is no matter of this check.

    Raises:
        InvalidRequest: source self has no questions; a field of the questions stands beside them, or
            one of source self in rows that are taken as they are.
    """
    if not isinstance(source, Mapping) or not isinstance(source.get("kind"), str):
        return
    kind = source["kind"]
    if kind == "self":
        if source.get("questions") is None:
            raise InvalidRequest(
                f"{_SOURCE}: kind self asks the base model, and has no questions to ask.",
                param=f"{_SOURCE}.questions",
                hint=f"Set {_SOURCE}.questions to a source of questions with their answers, such as "
                "{kind: huggingface, dataset: openai/gsm8k} or {kind: jsonl, path: mine.jsonl}. A source "
                "of another kind replaces the recipe's whole.",
            )
        if stray := _first(source, _GIVEN - _OWN):
            raise InvalidRequest(
                f"{_SOURCE}.{stray}: source self asks questions, which have this field.",
                param=f"{_SOURCE}.{stray}",
                hint=f"Set {_SOURCE}.questions.{stray} for other questions, or {_SOURCE}.kind, too, for "
                "rows with the answers that they come with.",
            )
    elif stray := _first(source, _OWN - _GIVEN):
        raise InvalidRequest(
            f"{_SOURCE}.{stray}: a source of kind {kind} asks nothing; its rows come with their answers.",
            param=f"{_SOURCE}.{stray}",
            hint=f"Leave it out, or set {_SOURCE}.kind to self with {_SOURCE}.questions.",
        )


def _first(source: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    """The first field of the source that is one of these."""
    return next((field for field in source if field in fields), None)
