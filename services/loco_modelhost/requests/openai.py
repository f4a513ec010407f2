"""OpenAI's form of a chat request, made into Ollama's as Ollama does (openai.FromChatRequest)."""

import json
from typing import Any

from loco_modelhost.requests.body import Body
from loco_modelhost.requests.refusals import Refusal

#: What `reasoning_effort` means for `think`.
_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    **{name: name for name in ("low", "medium", "high", "max")},
    **dict.fromkeys(("xhigh", "ultra"), "max"),
}
_OPTIONS = ("seed", "frequency_penalty", "presence_penalty")
_GO_TYPES = ((bool, "bool"), (int | float, "float64"), (dict, "map[string]interface {}"))


def chat_body(raw: bytes) -> Body:
    """The request as /api/chat takes it.

    Where it leaves them out, temperature and top_p are 1 (OpenAI's defaults, whatever the model's own
    parameters say), and `think` is left out too.

    Raises:
        Refusal: 400, in Ollama's words.
    """
    asked = Body("ChatCompletionRequest", raw)
    messages = asked.any("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "[] is too short - 'messages'")
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
    for name in (*_OPTIONS, "temperature", "top_p"):
        if asked.has(name):
            options[name] = asked.any(name)
    if asked.has("max_tokens"):
        options["num_predict"] = asked.any("max_tokens")
    stop = asked.any("stop")
    if isinstance(stop, str):
        options["stop"] = [stop]
    elif isinstance(stop, list):
        options["stop"] = [text for text in stop if isinstance(text, str)]
    changed = {
        "model": asked.text("model"),
        "messages": [part for message in messages for part in _parts(message)],
        "options": options,
        "stream": asked.flag("stream"),
        "tools": asked.any("tools"),
        "format": _format(asked.mapping("response_format")),
        "think": _think(asked),
        "_debug_render_only": asked.flag("_debug_render_only"),
    }
    return Body("ChatRequest", json.dumps(changed).encode())


def _parts(message: Any) -> list[dict[str, Any]]:
    """A message; one for each of its parts where its content is a list."""
    if not isinstance(message, dict):
        raise Refusal(400, "invalid message format")
    role, content = message.get("role", ""), message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        kind = next((go for kind, go in _GO_TYPES if isinstance(content, kind)), "<nil>")
        raise Refusal(400, f"invalid message content type: {kind}")
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        for part in content
    ]
    if not all(isinstance(text, str) for text in texts):
        raise Refusal(400, "invalid message format")
    return [{"role": role, "content": text} for text in texts]


def _format(asked: dict[str, Any]) -> Any:
    match str(asked.get("type", "")).strip().lower():
        case "json_object":
            return "json"
        case "json_schema":
            return (asked.get("json_schema") or {}).get("schema")
    return None


def _think(asked: Body) -> bool | str | None:
    reasoning = asked.mapping("reasoning")
    effort = reasoning.get("effort", "") if reasoning else asked.text("reasoning_effort")
    if not effort:
        return None
    if effort not in _EFFORTS:
        raise Refusal(
            400,
            f'invalid reasoning value: {json.dumps(effort)} (must be "minimal", "low", "medium", '
            '"high", "xhigh", "ultra", "max", or "none")',
        )
    return _EFFORTS[effort]
