"""/api/generate: from a request to the events of its answer."""

import time
from collections.abc import AsyncIterator

from loco_modelhost.answers.answer import Answer, Event
from loco_modelhost.engine.pool import Pool, Slot
from loco_modelhost.engine.session import OVERFLOW
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.refusals import INVALID_NAME, Refusal, not_found
from loco_modelhost.store.models import Model
from loco_modelhost.store.store import Store


async def generate(store: Store, pool: Pool, body: Body) -> AsyncIterator[Event]:
    """Events of a completion; `merged` makes one answer of them.

    Raises:
        Refusal: with Ollama's status and words.
    """
    requested = body.text("model")
    if not requested:
        raise not_found(requested)
    name = store.resolve(requested)
    if not name.is_valid:
        raise Refusal(400, INVALID_NAME)
    model = Model.load(store, requested, name)
    answer = Answer.of(model, requested, body)
    empty = not body.text("prompt")
    if empty and body.has("keep_alive") and body.keep_alive() == 0:
        pool.unload(model)
        yield answer.event({"response": ""}, done=True, done_reason="unload")
        return
    _check(model, body)
    async with pool.use(model, answer.options.num_ctx, body.keep_alive()) as slot:
        answer.loaded_at = time.monotonic_ns()
        if empty:
            yield answer.event({"response": ""}, done=True, done_reason="load")
            return
        prompt, tokens = await _prompt(model, answer, slot, body)
        if body.flag("_debug_render_only"):
            yield answer.event({"response": ""}, _debug_info={"rendered_template": prompt})
            return
        said = ""
        async for content, thinking, final in answer.pieces(slot, prompt, tokens):
            said += thinking + content
            more: Event = {"thinking": thinking} if thinking else {}
            if final and not body.flag("raw"):
                more["context"] = (await slot.tokenize(prompt + said)).ids
            yield answer.event({"response": content}, **more, **final)


def merged(events: list[Event]) -> Event:
    """One answer of all events, as `stream: false` gets it."""
    last = {**events[-1], "response": "".join(event["response"] for event in events)}
    if thinking := "".join(event.get("thinking", "") for event in events):
        last["thinking"] = thinking
    return last


def _check(model: Model, body: Body) -> None:
    if body.flag("raw") and (body.text("template", "system") or body.any("context")):
        raise Refusal(400, "raw mode does not support template, system, or context")
    if body.text("suffix"):
        raise Refusal(400, f"{model.manifest.name} does not support insert")


async def _prompt(model: Model, answer: Answer, slot: Slot, body: Body) -> tuple[str, list[int]]:
    """The prompt as it is (`raw`), or rendered as a chat, after the `context` of an earlier answer."""
    text, earlier = body.text("prompt"), _context(body)
    if body.flag("raw"):
        return text, await _tokens(answer, slot, text)
    messages = [] if earlier else [*model.messages]
    if system := body.text("system") or model.system:
        messages.insert(0, {"role": "system", "content": system})
    prompt, tokens = await answer.prompt(slot, [*messages, {"role": "user", "content": text}])
    if not earlier:
        return prompt, tokens
    prompt = await slot.detokenize(earlier) + prompt
    return prompt, await _tokens(answer, slot, prompt)


async def _tokens(answer: Answer, slot: Slot, prompt: str) -> list[int]:
    """All of a prompt that is not cut."""
    tokens = await slot.tokenize(prompt, answer.options.num_ctx)
    if tokens.count >= answer.options.num_ctx:
        raise Refusal(400, OVERFLOW)
    return tokens.ids


def _context(body: Body) -> list[int]:
    context = body.any("context") or []
    if not isinstance(context, list) or not all(type(token) is int for token in context):
        raise Refusal(400, "context must be the list of numbers from an earlier answer")
    return context
