"""Writes the reference pages from the code: commands, routes, settings.

    make reference

`tests/docs/test_reference.py` fails while a page differs from what the code says. The fields of a
recipe stand in docs/recipes.md, among their explanations.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from loco.cli.main import app
from loco.settings import Settings, Timings
from loco_api.__main__ import build
from loco_api.app import create_app

HERE = Path(__file__).parent
_MARK = "<!-- Written by `make reference`: edit the code, not this page. -->\n\n"
_ANSWERED = ("200", "201", "202", "204", "206")


def pages() -> dict[str, str]:
    """File name to content."""
    nowhere = Settings(
        redis_url="redis://:none@127.0.0.1:1/0", adapters_dir=HERE.parents[1] / "adapters"
    )
    return {
        "cli.md": "\n".join(_commands(typer.main.get_command(app), "loco")),
        "api.md": "\n".join(_routes(create_app(build(nowhere)).openapi())),
        "settings.md": "\n".join(_settings()),
    }


def _commands(command: Any, name: str) -> Iterator[str]:
    """A command, its arguments and options, then the commands below it."""
    if name == "loco":
        yield f"{_MARK}# Reference: every command\n\n[cli.md](../cli.md) shows how they go together.\n"
    else:
        yield f"## {name}\n"
    yield f"{_line(command.help)}\n"
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    if shown:
        yield "| | default | |\n|---|---|---|"
        for parameter in shown:
            yield f"| {_spelled(parameter)} | {_default(parameter)} | {_cell(parameter.help)} |"
        yield ""
    for each, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{name} {each}")


def _spelled(parameter: Any) -> str:
    option = parameter.opts[0].startswith("-")
    words = ", ".join(f"`{o}`" for o in (*parameter.opts, *parameter.secondary_opts))
    if not option:
        words = f"`{(parameter.metavar or parameter.name).upper()}`"
    elif not parameter.is_flag:
        words += f" {parameter.metavar or 'VALUE'}"
    return f"{words} …" if getattr(parameter, "multiple", False) or parameter.nargs == -1 else words


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    given = parameter.default
    nothing = given is None or given is False or given in ([], ()) or callable(given)
    return "" if nothing else f"`{getattr(given, 'value', given)}`"


def _routes(document: dict[str, Any]) -> Iterator[str]:
    """Every route: what it takes, what it answers; the schemas stand in /openapi.json."""
    yield f"{_MARK}# Reference: every route\n"
    yield "[api.md](../api.md) says what a schema cannot; `GET /openapi.json` has every field.\n"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"## {method.upper()} {path}\n"
            yield f"{_line(operation.get('description') or operation.get('summary'))}\n"
            yield from _parameters(operation)
            yield from _answers(operation)


def _parameters(operation: dict[str, Any]) -> Iterator[str]:
    parameters = operation.get("parameters", [])
    if parameters:
        yield "| parameter | in | |\n|---|---|---|"
        for each in parameters:
            needed = " (required)" if each.get("required") and each["in"] != "path" else ""
            yield f"| `{each['name']}` | {each['in']} | {_cell(each.get('description'))}{needed} |"
        yield ""
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body: {_schema(body.get('schema', {}))} as `{kind}`.\n"


def _answers(operation: dict[str, Any]) -> Iterator[str]:
    answers = operation["responses"]
    for status in (s for s in answers if s in _ANSWERED):
        kinds = [
            f"{_schema(content.get('schema', {}))} as `{kind}`"
            for kind, content in answers[status].get("content", {}).items()
        ]
        yield f"Answers {status}{': ' + ', or '.join(kinds) if kinds else ''}.\n"
    refused = sorted(s for s in answers if s not in _ANSWERED)
    if refused:
        yield f"Errors: {', '.join(refused)} ([troubleshooting](../troubleshooting.md#codes)).\n"


def _schema(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    inner = [s for s in schema.get("anyOf", []) if s.get("type") != "null"]
    if inner:
        return " or ".join(_schema(s) for s in inner)
    if schema.get("type") == "array":
        return f"a list of {_schema(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "bytes"
    return {"object": "an object", "string": "text"}.get(schema.get("type", ""), "content")


def _settings() -> Iterator[str]:
    """The variables a process of locollm reads."""
    yield f"{_MARK}# Reference: every setting\n"
    yield (
        "Environment variables, also from a file `.env` in the folder, or files of "
        "`LOCO_SECRETS_DIR`. Durations are in seconds.\n"
    )
    told = Settings().environment()
    yield "| variable | default | |\n|---|---|---|"
    for model in (Settings, Timings):
        for name, field in model.model_fields.items():
            stem = f"LOCO_{name.upper()}"
            variable = "OLLAMA_HOST" if name == "ollama_host" else stem
            if variable not in told:
                variable = f"{stem}_SECONDS"
            if variable in told:
                default = f"`{told[variable]}`" if told[variable] else "none"
                yield f"| `{variable}` | {default} | {_cell(field.description)} |"
    yield ""


def _line(text: str | None) -> str:
    """A docstring's prose as one paragraph each; Google's sections are for readers of the code."""
    words = (text or "").split("\f")[0].split("\n\n")
    kept = [p for p in words if not p.lstrip().startswith(("Args:", "Raises:", "Returns:"))]
    return "\n\n".join(" ".join(p.split()) for p in kept)


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    for file, content in pages().items():
        (HERE / file).write_text(content)
