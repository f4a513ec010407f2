"""POST /v1/chat/completions and /v1/embeddings: passed on to Ollama, which speaks OpenAI's form itself."""

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from loco.contracts.errors import (
    BodyTooLarge,
    Busy,
    InvalidRequest,
    NotFound,
    OllamaRefused,
    OllamaUnavailable,
)
from loco.recipes.catalog import load_catalog
from loco_api.auth import SUBMIT, caller
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.openai_api.upstream import Upstream

router = APIRouter(tags=["openai"])

_ERRORS: dict[int | str, dict[str, Any]] = responses(
    InvalidRequest, NotFound, BodyTooLarge, Busy, OllamaUnavailable, OllamaRefused, openai=True
)


def _documented(
    required: list[str], described: dict[str, str], answer: str, *, streams: bool = False
) -> dict[str, Any]:
    """What a route that passes bodies on says of them."""
    kinds = {"messages": "array", "stream": "boolean"}
    properties = {
        name: {
            "description": text,
            **({"type": kinds.get(name, "string")} if name != "input" else {}),
            **({"minLength": 1} if name == "model" else {}),
        }
        for name, text in described.items()
    }
    schema = {
        "type": "object",
        "description": "As in OpenAI's API. Ollama reads the rest of it.",
        "required": required,
        "properties": properties,
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {
                "description": answer,
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    **({"text/event-stream": {"schema": {"type": "string"}}} if streams else {}),
                },
            }
        },
    }


@router.post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    summary="Chat with a model",
    dependencies=[SUBMIT],
    response_class=Response,
    responses=_ERRORS,
    openapi_extra=_documented(
        ["model", "messages"],
        {
            "model": "A model in Ollama (`fine_tuned_model` of a job), or a base's name in the catalog.",
            "messages": "The conversation so far.",
            "stream": "Answer with server-sent events.",
        },
        "Ollama's answer: an object, or server-sent events with `stream`.",
        streams=True,
    ),
)
async def create_chat_completion(request: Request, here: Here) -> Response:
    """Asks Ollama, and returns its answer or its error."""
    body = await _asked(request, here)
    most = body.pop("max_completion_tokens", None)
    if most is not None and body.get("max_tokens") is None:
        body["max_tokens"] = most  # the newer name; Ollama knows the older one
    return await _passed(request, "/v1/chat/completions", body)


@router.post(
    "/v1/embeddings",
    operation_id="createEmbedding",
    summary="Embed a text",
    dependencies=[SUBMIT],
    response_class=Response,
    responses=_ERRORS,
    openapi_extra=_documented(
        ["model", "input"],
        {"model": "A model in Ollama.", "input": "A text, or a list of them."},
        "Ollama's answer.",
    ),
)
async def create_embedding(request: Request, here: Here) -> Response:
    """Asks Ollama, and returns its answer or its error."""
    return await _passed(request, "/v1/embeddings", await _asked(request, here))


async def _asked(request: Request, here: Here) -> dict[str, Any]:
    """The body, with the model's name in Ollama.

    Raises:
        InvalidRequest: it is no JSON object, or names no model.
    """
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error}.", hint="Send one JSON object."
        ) from error
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        raise InvalidRequest(
            "model: is missing.",
            param="model",
            hint="Send a JSON object with `model`; GET /v1/models lists them.",
        )
    base = load_catalog(here.settings.adapters_dir).get(body["model"])
    return {**body, "model": base.ollama if base else body["model"]}


async def _passed(request: Request, path: str, body: dict[str, Any]) -> Response:
    upstream: Upstream = request.app.state.ollama
    try:
        raw = json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidRequest(f"The body is not plain JSON: {error}.") from error
    return await upstream.post(request, path, raw, key=caller(request).key_id)
