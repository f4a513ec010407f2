"""OpenAI's paths: Ollama's answers in OpenAI's words, chats whole or as server-sent events."""

import base64
import json
import random
import struct
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from loco_modelhost.answers import chat as chats
from loco_modelhost.answers.embed import embed
from loco_modelhost.api.routes import ThePool, TheStore
from loco_modelhost.api.streams import unless_gone
from loco_modelhost.engine.session import EngineError
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.names import ModelName
from loco_modelhost.requests.openai import chat_body
from loco_modelhost.requests.refusals import Refusal, not_found
from loco_modelhost.store.models import Model
from loco_modelhost.store.store import Manifest

Event = dict[str, Any]

_ERRORS = {400: "invalid_request_error", 404: "not_found_error"}

router = APIRouter()


@router.post("/v1/chat/completions")
async def completions(request: Request, store: TheStore, pool: ThePool) -> Response:
    """Answers a conversation."""
    raw = await request.body()
    body = chat_body(raw)
    events = chats.chat(store, pool, body)
    answer = _Answer(with_usage=_wants_usage(raw))
    if body.flag("stream"):
        return await unless_gone(request, answer.streamed(events))
    return await unless_gone(request, answer.whole(events))


@router.get("/v1/models")
def models(store: TheStore) -> Response:
    """The stored models, the newest first."""
    found = [_listed(manifest, manifest.name.short) for manifest in store.manifests()]
    return JSONResponse({"object": "list", "data": found})


@router.get("/v1/models/{name:path}")
def model(name: str, store: TheStore) -> Response:
    """One of them, by the name it was asked for."""
    resolved = store.resolve(name)
    if not resolved.is_valid:
        raise not_found(name)
    return JSONResponse(_listed(Model.load(store, name, resolved).manifest, name))


@router.post("/v1/embeddings")
async def embeddings(request: Request, store: TheStore, pool: ThePool) -> Response:
    """Vectors of texts."""
    body = Body("EmbedRequest", await request.body())
    if body.any("input") in (None, "", []):
        raise Refusal(400, "invalid input")
    form = body.text("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise Refusal(
            400,
            f"Invalid value for 'encoding_format' = {form}. "
            'Supported values: ["float", "base64"].',
        )

    async def answer() -> Response:
        found = await embed(store, pool, body)
        tokens = found["prompt_eval_count"]
        data = [
            {"object": "embedding", "embedding": _vector(vector, form), "index": index}
            for index, vector in enumerate(found["embeddings"])
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse(
            {"object": "list", "data": data, "model": found["model"], "usage": usage}
        )

    return await unless_gone(request, answer())


def error(status: int, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it (openai.NewError)."""
    kind = _ERRORS.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class _Answer:
    """One answer, of Ollama's events."""

    def __init__(self, *, with_usage: bool) -> None:
        self._id = f"chatcmpl-{random.randrange(999)}"  # noqa: S311 (a name, as Ollama makes it)
        self._with_usage = with_usage
        self._created = 0

    async def whole(self, events: AsyncIterator[Event]) -> Response:
        """One object."""
        event = chats.merged([event async for event in events])
        message = event["message"]
        said = {"role": message["role"], "content": message["content"]}
        said |= {"reasoning": message["thinking"]} if "thinking" in message else {}
        choice = {"index": 0, "message": said, "finish_reason": event.get("done_reason")}
        answer = self._head(event, "chat.completion")
        answer |= {"choices": [choice], "usage": _usage(event)}
        if "_debug_info" in event:
            answer["_debug_info"] = event["_debug_info"]
        return JSONResponse(answer)

    async def streamed(self, events: AsyncIterator[Event]) -> Response:
        """Waits for the first event: an error until then still has a status of its own."""
        first = await anext(events)
        return StreamingResponse(self._lines(first, events), media_type="text/event-stream")

    async def _lines(self, first: Event, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        for chunk in self._chunks(first, opening=True):
            yield _line(chunk)
        try:
            async for event in events:
                for chunk in self._chunks(event, opening=False):
                    yield _line(chunk)
                if event["done"]:
                    yield b"data: [DONE]\n\n"
        except Refusal as refusal:
            yield _line(error(refusal.status, refusal.message))
        except (EngineError, OSError) as failure:
            sys.stderr.write(f"{type(failure).__name__}: {failure}\n")
            yield _line(error(500, str(failure)))
        else:
            if first["done"]:
                yield b"data: [DONE]\n\n"

    def _chunks(self, event: Event, *, opening: bool) -> list[Event]:
        """What an event becomes: content, then the reason of the end, then usage if asked for."""
        message = event["message"]
        content, thinking = message["content"], message.get("thinking", "")
        role = {"role": "assistant"} if opening else {}
        deltas: list[Event] = []
        if thinking and content:
            deltas = [{**role, "reasoning": thinking}, {"content": content}]
        elif opening or not event["done"] or content or thinking:
            deltas = [{**role, "content": content, **({"reasoning": thinking} if thinking else {})}]
        head = self._head(event, "chat.completion.chunk")
        chunks = [
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            for delta in deltas
        ]
        if event["done"]:
            reason = event.get("done_reason") or "stop"
            chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
            if self._with_usage:
                chunks.append({**head, "choices": [], "usage": _usage(event)})
        return chunks

    def _head(self, event: Event, kind: str) -> Event:
        # every chunk of a stream has the time of the first
        created = int(datetime.fromisoformat(event["created_at"]).timestamp())
        self._created = self._created or created
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": event["model"],
            "system_fingerprint": "fp_ollama",
        }


def _listed(manifest: Manifest, name: str) -> dict[str, Any]:
    owner = ModelName.parse(name).namespace
    return {
        "id": name,
        "object": "model",
        "created": int(manifest.modified_at.timestamp()),
        "owned_by": owner,
    }


def _vector(vector: list[float], form: str) -> list[float] | str:
    """As numbers, or as little-endian floats of 32 bits in base64."""
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _wants_usage(raw: bytes) -> bool:
    return Body("ChatCompletionRequest", raw).mapping("stream_options").get("include_usage") is True


def _usage(event: Event) -> dict[str, int]:
    prompt, answer = event.get("prompt_eval_count", 0), event.get("eval_count", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def _line(chunk: Event) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"
