"""The OpenAPI document is complete: every field described, every error listed."""

import ast
import inspect
import json
from pathlib import Path

import pytest

from loco.contracts import errors
from loco.contracts.errors import LocoError
from loco.queue import grid, replay, submission, sweeps
from loco.recipes import catalog, data_files, documents, frozen, resolve
from loco.settings import Settings
from loco_api.__main__ import build
from loco_api.app import create_app

OPEN = {"/healthz", "/readyz", "/version"}


@pytest.fixture(scope="module")
def document():
    settings = Settings(redis_url="redis://127.0.0.1:1/0", adapters_dir=Path("adapters"))
    return create_app(build(settings)).openapi()


@pytest.fixture(scope="module")
def operations(document):
    return {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_schema_and_property_is_described(document):
    schemas = document["components"]["schemas"]
    assert len(schemas) > 30
    missing = [n for n, s in schemas.items() if not s.get("description")]
    missing += [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, value in schema.get("properties", {}).items()
        if not value.get("description")
    ]
    assert missing == []


def test_every_reference_leads_somewhere(document):
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(schemas)
    unused = {n for n in schemas if n not in named}
    assert unused == set()


def test_every_operation_is_named_tagged_and_described(operations):
    ids = [o["operationId"] for o in operations.values()]
    assert len(set(ids)) == len(ids)
    assert all(o["tags"] and o["summary"] and o["description"] for o in operations.values())
    parameters = [p for o in operations.values() for p in o.get("parameters", [])]
    assert all(p.get("description") for p in parameters)
    assert all(r["description"] for o in operations.values() for r in o["responses"].values())


def test_every_operation_lists_its_errors(operations):
    for (method, path), operation in operations.items():
        errors = {code for code in operation["responses"] if int(code) >= 400}
        if path in OPEN:
            assert "security" not in operation
            continue
        assert list(operation["security"][0]) == ["apiKey"], path
        openai = path.startswith("/v1/")
        expected = {"401", "403", "400" if openai else "422", "429", "500", "503"}
        if "{" in path:
            expected.add("404")
        assert expected <= errors, (method, path)
        for code in errors:
            schema = operation["responses"][code]["content"]["application/json"]["schema"]
            form = "OpenAIErrorAnswer" if openai else "ErrorAnswer"
            assert schema == {"$ref": f"#/components/schemas/{form}"}, (path, code)
    assert {"404", "409", "413"} <= set(operations["post", "/jobs"]["responses"])
    assert "409" in operations["post", "/jobs/{job_id}/retry"]["responses"]
    download = operations["get", "/jobs/{job_id}/artifacts/{path}"]["responses"]
    assert {"200", "206", "304", "416"} <= set(download)


def raised_by(*modules):
    """Codes of the errors of ours that a module raises somewhere."""
    named = {
        node.exc.func.id
        for module in modules
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }
    classes = [getattr(errors, name, None) for name in named]
    return {c.code for c in classes if isinstance(c, type) and issubclass(c, LocoError)}


@pytest.mark.parametrize(
    ("path", "modules"),
    [
        ("/jobs", (submission, catalog, data_files, documents, frozen, resolve)),
        ("/jobs/{job_id}/replay", (submission, replay)),
        ("/sweeps", (submission, grid, sweeps, catalog, data_files, documents, frozen, resolve)),
    ],
)
def test_submission_lists_every_error_it_can_raise(operations, path, modules):
    answers = operations["post", path]["responses"]
    listed = {
        code
        for status, answer in answers.items()
        if int(status) >= 400
        for code in answer["content"]["application/json"]["examples"]
    }
    raised = raised_by(*modules) | {"idempotency_conflict"}
    assert {"bad_data", "stage_gap", "not_found", "conflict"} <= raised
    assert raised <= listed


def test_overrides_show_every_field_and_none_is_required(document):
    schemas = document["components"]["schemas"]
    request = schemas["JobRequest"]["properties"]
    assert request["train"]["$ref"] == "#/components/schemas/TrainSpecOverrides"
    train = schemas["TrainSpecOverrides"]
    assert train["properties"]["epochs"]["exclusiveMinimum"] == 0
    assert {"lora", "learning_rate", "batch_size", "max_length"} <= set(train["properties"])
    assert not {"base_model", "model_name"} & set(train["properties"])
    assert "alpha" in schemas["LoraSpecOverrides"]["properties"]
    overrides = [s for name, s in schemas.items() if name.endswith("Overrides")]
    assert len(overrides) >= 10
    assert not any("required" in schema for schema in overrides)


def test_two_classes_of_one_name_are_two_schemas(document):
    schemas = document["components"]["schemas"]
    assert set(schemas["Check"]["properties"]) == {"status", "message", "hint"}
    assert {"name", "passed", "expected", "seen"} <= set(schemas["CheckResult"]["properties"])
    checks = schemas["RegisterResult"]["properties"]["checks"]["items"]
    assert checks == {"$ref": "#/components/schemas/CheckResult"}


def test_results_of_every_stage_are_spelled_out(document):
    result = document["components"]["schemas"]["Task"]["properties"]["result"]
    names = [entry["$ref"].rpartition("/")[2] for entry in result["anyOf"][:-1]]
    stages = ("Prepare", "Train", "Export", "Register", "Eval")
    assert names == [f"{stage}Result" for stage in stages]


def test_the_bearer_scheme_is_declared(document):
    scheme = document["components"]["securitySchemes"]["apiKey"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_openais_routes_list_every_kind_of_answer(operations):
    def kinds(method, path):
        return set(operations[method, path]["responses"]["200"]["content"])

    # the losses of a job are a CSV file, other files are bytes
    assert kinds("get", "/v1/files/{file_id}/content") == {"application/octet-stream", "text/csv"}
    assert kinds("post", "/v1/chat/completions") == {"application/json", "text/event-stream"}
    assert kinds("post", "/v1/embeddings") == {"application/json"}


def test_openais_routes_take_no_model_without_a_name(operations):
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        body = operations["post", path]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]["model"]["minLength"] == 1
