"""The OpenAPI document: FastAPI's, with the stage overrides and stage results spelled out.

A request may override any field of a stage's spec, and a task's result is that of its stage. Both
are open mappings in the contracts, so their fields are put into the document here, from the
contracts themselves.
"""

import json
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from loco.contracts.results import (
    EvalResult,
    ExportResult,
    PrepareResult,
    RegisterResult,
    TrainResult,
)
from loco.contracts.specs import STAGE_SPECS
from loco.contracts.stages import Stage
from loco_api.errors import OPENAI

TITLE = "locollm"
DESCRIPTION = """
Builds LoRA adapters for small language models and puts them to work.

`POST /jobs` accepts a job and answers at once; poll `GET /jobs/{id}`, or follow
`GET /jobs/{id}/events` live. Every error is `{"error": {"code", "message", "param", "hint"}}`.
"""
TAGS = [
    {"name": "jobs", "description": "Submit, watch, cancel and retry."},
    {"name": "sweeps", "description": "Several trainings on one data set. The best continues."},
    {"name": "events", "description": "What happens to a job, live or in pages."},
    {"name": "artifacts", "description": "The files a job made."},
    {
        "name": "adapters",
        "description": "The recipes of this server, and the versions built from them.",
    },
    {"name": "datasets", "description": "Your own rows: upload, show and delete them."},
    {"name": "keys", "description": "API keys, and who did what with them. For admins."},
    {
        "name": "openai",
        "description": "OpenAI's API for its clients: files, fine-tuning jobs, models and "
        "chats. Errors have OpenAI's form.",
    },
    {"name": "service", "description": "Health, workers and version."},
]

_RESULTS = {
    Stage.PREPARE: PrepareResult,
    Stage.TRAIN: TrainResult,
    Stage.EXPORT: ExportResult,
    Stage.REGISTER: RegisterResult,
    Stage.EVAL: EvalResult,
}
#: Fields of a spec that follow from the recipe and the top of the request.
_FIXED = ("base_model", "model_name")


class Api(FastAPI):
    """The application with its complete OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The document, built once."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            _leave_out_validation_errors(document)
            _spell_out_overrides(schemas)
            _spell_out_results(schemas)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _leave_out_validation_errors(document: dict[str, Any]) -> None:
    """Drops the 422 that FastAPI puts where a route lists none: below /v1 it is a 400 (`errors`)."""
    for path, operations in document["paths"].items():
        if path.startswith(OPENAI):
            for operation in operations.values():
                operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _spell_out_overrides(schemas: dict[str, Any]) -> None:
    """Gives job and plan requests their overrides: the stage specs, every field left to choice."""
    models = [(spec, "validation") for spec in STAGE_SPECS.values()]
    _, definitions = models_json_schema(
        models,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}Overrides",
    )
    for name, schema in definitions["$defs"].items():
        schemas[f"{name}Overrides"] = {**_all_optional(schema), "title": f"{name}Overrides"}
    for stage, spec in STAGE_SPECS.items():
        overrides = schemas[f"{spec.__name__}Overrides"]
        for field in _FIXED:
            overrides["properties"].pop(field, None)
        overrides["description"] = f"Fields of stage {stage} to change from the recipe."
        for name in ("JobRequest", "PlanRequest", "SweepRequest"):
            fields = schemas[name]["properties"]
            fields[stage.value] = {
                "$ref": f"#/components/schemas/{spec.__name__}Overrides",
                "description": fields[stage.value]["description"],
                "default": {},
            }
    schemas.pop("BaseModelSpecOverrides", None)


def _all_optional(schema: Any) -> Any:
    """A schema without required fields and defaults: what is left out is the recipe's.

    A source may leave out its `kind` to change the recipe's own, so `oneOf` becomes `anyOf`.
    """
    if isinstance(schema, list):
        return [_all_optional(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        "anyOf" if key == "oneOf" else key: _all_optional(value)
        for key, value in schema.items()
        if key not in ("required", "default", "discriminator")
    }


def _spell_out_results(schemas: dict[str, Any]) -> None:
    """Gives `Task.result` the results of the five stages."""
    models = [(result, "serialization") for result in _RESULTS.values()]
    _, definitions = models_json_schema(
        models,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    schemas.update(_apart(definitions["$defs"], schemas))
    field = schemas["Task"]["properties"]["result"]
    schemas["Task"]["properties"]["result"] = {
        "description": field["description"] + " Its form is that of the task's stage.",
        "anyOf": [
            *({"$ref": f"#/components/schemas/{r.__name__}"} for r in _RESULTS.values()),
            {"type": "null"},
        ],
    }


def _apart(definitions: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Definitions of results; one that shares no more than its name with a schema gets another."""
    text = json.dumps(definitions)
    taken = [
        name
        for name, schema in definitions.items()
        if name in schemas and schemas[name]["description"] != schema["description"]
    ]
    for name in taken:
        place = "#/components/schemas/"
        text = text.replace(f'"{place}{name}"', f'"{place}{name}Result"')
    renamed = json.loads(text)
    return {f"{n}Result" if n in taken else n: schema for n, schema in renamed.items()}
