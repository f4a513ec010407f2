"""`--set train.epochs=5`: fields of the request from the command line, with the types of YAML.

Text is kept as it is written where a field takes nothing else (`eval.instruction`).
"""

import json
from contextlib import suppress
from functools import cache
from typing import Any

import yaml
from pydantic import TypeAdapter

from loco.contracts.errors import InvalidRequest
from loco.contracts.requests import JobRequest
from loco.contracts.specs import STAGE_SPECS
from loco.contracts.stages import Stage
from loco.recipes.documents import parsed_yaml


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Nested fields from `a.b=value` words; later ones win.

    Raises:
        InvalidRequest: no `=`, an empty name, a value that is not YAML, or a field below a value.
    """
    fields: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise InvalidRequest(
                f"--set {assignment}: must be FIELD=VALUE.",
                param="--set",
                hint="Write it like --set train.epochs=5 or --set train.lora.r=8.",
            )
        place = fields
        for name in names[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InvalidRequest(
                    f"--set {assignment}: {name} already has a value from an earlier --set.",
                    param="--set",
                )
        place[names[-1]] = _value(assignment, path.strip(), text)
    return fields


def parse_grid(assignments: list[str]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The fields that are given several values, and the others nested as `parse_assignments` has them.

    `1,2` and `[1, 2]` are two values. A list for a field that holds a list (train.lora.target_modules) is
    one; a list of lists is several.
    """
    grid: dict[str, list[Any]] = {}
    single: list[str] = []
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        values = _values(assignment, field.strip(), text) if equals else None
        if values is None:
            single.append(assignment)
        else:
            grid[field.strip()] = values
    return grid, parse_assignments(single)


def _values(assignment: str, field: str, text: str) -> list[Any] | None:
    """The values of a field that has several; None: it has one."""
    try:
        whole = json.loads(text, parse_constant=_refuse)
    except ValueError:
        if _holds_text(field) and not field.startswith(f"{Stage.TRAIN}."):
            return None  # only fields of train are swept, and a sentence has commas
        parts = _apart(text)
        return [_value(assignment, field, part) for part in parts] if len(parts) > 1 else None
    lists = isinstance(whole, list) and any(isinstance(entry, list) for entry in whole)
    return whole if isinstance(whole, list) and (lists or not _holds_a_list(field)) else None


def _apart(text: str) -> list[str]:
    """A text cut at its commas, but for those within brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        parts[-1] += character
    return parts


def _holds_a_list(field: str) -> bool:
    """Whether a field takes a list as its value."""
    return "array" in _types(field)


def _holds_text(field: str) -> bool:
    """Whether a field takes text, and nothing else but perhaps null."""
    return _types(field) - {"null"} == {"string"}


@cache
def _types(field: str) -> frozenset[str]:
    """The JSON types that a field of the request takes; empty where there is no such field."""
    kind: Any = JobRequest
    section, *names = field.split(".")
    if section in STAGE_SPECS:
        kind = STAGE_SPECS[Stage(section)]
    else:
        names = [section, *names]
    for name in names:
        found = getattr(kind, "model_fields", {}).get(name)
        if found is None:
            return frozenset()
        kind = found.annotation
    schema = TypeAdapter(kind).json_schema()
    parts = schema.get("anyOf", [schema])
    return frozenset(str(part.get("type", "object")) for part in parts)


def parse_metadata(pairs: list[str]) -> dict[str, str]:
    """Metadata from `key=value` words.

    Raises:
        InvalidRequest: a word has no `=` or no key.
    """
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidRequest(
                f"--metadata {pair}: must be KEY=VALUE.",
                param="--metadata",
                hint="Write it like --metadata owner=ada.",
            )
        metadata[key] = value
    return metadata


def _value(assignment: str, field: str, text: str) -> Any:
    if _holds_text(field):
        return _text(assignment, field, text.strip())
    return _parsed(assignment, text)


def _text(assignment: str, field: str, text: str) -> str | None:
    """A field's text as it is written: `One of: a, b` is no mapping there, and `# 1` no comment."""
    if text in ("", "null", "~") and "null" in _types(field):
        return None
    if text.startswith(('"', "'", "|", ">")):
        with suppress(InvalidRequest):
            value = _parsed(assignment, text)
            return value if isinstance(value, str) else text
    return text


def _parsed(assignment: str, text: str) -> Any:
    # JSON first: YAML 1.1 reads 2e-4 as a string.
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        pass
    try:
        return parsed_yaml(text)
    except yaml.YAMLError as error:
        raise InvalidRequest(
            f"--set {assignment}: the value is not valid YAML.",
            param="--set",
            hint="Put quotes around it, as in --set 'prepare.source={kind: arithmetic}'. Text with "
            "brackets or `: ` needs quotes of its own inside them.",
        ) from error


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
