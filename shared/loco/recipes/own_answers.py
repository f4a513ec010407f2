"""What a person gets wrong who turns a source of given rows into source self, or back."""

from collections.abc import Mapping
from shlex import quote
from typing import Any, get_args

import yaml

from loco.contracts.errors import InvalidRequest
from loco.contracts.sources import (
    ArithmeticSource,
    DatasetSource,
    HuggingFaceSource,
    JsonlSource,
    ReasoningGymSource,
    SelfSource,
)

_SOURCE = "prepare.source"
_OWN = frozenset(SelfSource.model_fields)
#: Fields of the sources of given rows, by kind.
_FIELDS = {
    get_args(source.model_fields["kind"].annotation)[0]: frozenset(source.model_fields)
    for source in (
        HuggingFaceSource,
        JsonlSource,
        DatasetSource,
        ReasoningGymSource,
        ArithmeticSource,
    )
}
_GIVEN = frozenset().union(*_FIELDS.values())


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
                f"{_SOURCE}: kind self asks the base model, but has no questions to ask.",
                param=f"{_SOURCE}.questions",
                hint=f"Set {_SOURCE}.questions to a source of questions with their answers, "
                "such as {kind: huggingface, dataset: openai/gsm8k} or {kind: jsonl, path: "
                "mine.jsonl}. A source of another kind replaces the whole source of the "
                "recipe.",
            )
        if stray := _first(source, _GIVEN - _OWN):
            raise InvalidRequest(
                f"{_SOURCE}.{stray}: in source self this field belongs to `questions`.",
                param=f"{_SOURCE}.{stray}",
                hint=f"For other questions `--set {_questions(source, stray)}`; for rows that "
                f"come with answers, set {_SOURCE}.kind too.",
            )
    elif stray := _first(source, _OWN - _GIVEN):
        raise InvalidRequest(
            f"{_SOURCE}.{stray}: a source of kind {kind} asks no questions. Its rows come "
            "with answers.",
            param=f"{_SOURCE}.{stray}",
            hint=f"Remove it, or set {_SOURCE}.kind to self with {_SOURCE}.questions.",
        )


def _questions(source: Mapping[str, Any], field: str) -> str:
    """What sets the field where it belongs: alone where these questions have it, else with their kind.

    Questions of another kind take the place of the recipe's whole.
    """
    asked = source["questions"]
    kind = asked.get("kind") if isinstance(asked, Mapping) else None
    if field in _FIELDS.get(str(kind), ()):
        return quote(f"{_SOURCE}.questions.{field}={_written(source[field])}")
    others = {known: source[known] for known in source if known in _GIVEN - _OWN}
    kind = next(kind for kind, fields in _FIELDS.items() if field in fields)
    of_kind = {name: value for name, value in others.items() if name in _FIELDS[kind]}
    return quote(f"{_SOURCE}.questions={_written({'kind': kind, **of_kind})}")


def _written(value: Any) -> str:
    """A value as `--set` reads it: YAML in a line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def _first(source: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    """The first field of the source that is one of these."""
    return next((field for field in source if field in fields), None)
