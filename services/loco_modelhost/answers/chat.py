"""/api/chat: from a request to the events of its answer."""

import time
from collections.abc import AsyncIterator

from loco_modelhost.answers.answer import Answer, Event
from loco_modelhost.answers.thinking import without_thinking
from loco_modelhost.engine.pool import Pool
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.refusals import INVALID_NAME, Refusal
from loco_modelhost.store.models import Model
from loco_modelhost.store.store import Store

_NOTHING = {"message": {"role": "assistant", "content": ""}}


async def chat(store: Store, pool: Pool, body: Body) -> AsyncIterator[Event]:
    """Events of a chat; `merged` makes one answer of them.

    Raises:
        Refusal: with Ollama's status and words.
    """
    requested = body.text("model")
    if not requested:
        raise Refusal(400, "model is required")
    name = store.resolve(requested)
    if not name.is_valid:
        raise Refusal(400, INVALID_NAME)
    model = Model.load(store, requested, name)
    messages = body.messages()
    answer = Answer.of(model, requested, body)
    if not messages and body.has("keep_alive") and body.keep_alive() == 0:
        pool.unload(model)
        yield answer.event(_NOTHING, done=True, done_reason="unload")
        return
    if body.any("tools"):
        _refuse_tools(model)
    async with pool.use(model, answer.options.num_ctx, body.keep_alive()) as slot:
        answer.loaded_at = time.monotonic_ns()
        if not messages:
            yield answer.event(_NOTHING, done=True, done_reason="load")
            return
        conversation = [*model.messages, *messages]
        if model.system and messages[0]["role"] != "system":
            conversation.insert(0, {"role": "system", "content": model.system})
        if model.config.model_family == "qwen3":
            conversation = without_thinking(conversation)
        prompt, tokens = await answer.prompt(slot, conversation)
        if body.flag("_debug_render_only"):
            shown = {"message": {"role": "", "content": ""}}
            yield answer.event(shown, _debug_info={"rendered_template": prompt})
            return
        async for content, thinking, final in answer.pieces(slot, prompt, tokens):
            message = {"role": "assistant", "content": content}
            message |= {"thinking": thinking} if thinking else {}
            yield answer.event({"message": message}, **final)


def merged(events: list[Event]) -> Event:
    """One answer of all events, as `stream: false` gets it."""
    parts = [event["message"] for event in events]
    message = {
        "role": parts[-1]["role"],
        "content": "".join(part["content"] for part in parts),
    }
    if thinking := "".join(part.get("thinking", "") for part in parts):
        message["thinking"] = thinking
    return {**events[-1], "message": message}


def _refuse_tools(model: Model) -> None:
    if "tools" not in model.capabilities:
        raise Refusal(400, f"{model.manifest.name} does not support tools")
    raise Refusal(400, "this model host does not parse tool calls: leave `tools` out")
