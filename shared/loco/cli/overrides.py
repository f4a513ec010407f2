"""`--set train.epochs=5`: fields of the request from the command line, with the types of YAML."""

import json
from typing import Any

import yaml

from loco.contracts.errors import InvalidRequest
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
                f"--set {assignment}: not FIELD=VALUE.",
                param="--set",
                hint="Write it like --set train.epochs=5 or --set train.lora.r=8.",
            )
        place = fields
        for name in names[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InvalidRequest(
                    f"--set {assignment}: {name} was set to a value before.", param="--set"
                )
        place[names[-1]] = _value(assignment, text)
    return fields


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
                f"--metadata {pair}: not KEY=VALUE.",
                param="--metadata",
                hint="Write it like --metadata owner=ada.",
            )
        metadata[key] = value
    return metadata


def _value(assignment: str, text: str) -> Any:
    # JSON first: YAML 1.1 reads 2e-4 as a string.
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        pass
    try:
        return parsed_yaml(text)
    except yaml.YAMLError as error:
        raise InvalidRequest(
            f"--set {assignment}: the value is not YAML.",
            param="--set",
            hint="Quote it, as in --set 'prepare.source={kind: arithmetic}'.",
        ) from error


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
