"""/api/chat and /api/generate: from a request to the events of its answer."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from llama_cpp import llama_grammar

from loco_modelhost import templates
from loco_modelhost.body import Body
from loco_modelhost.engine import Engine, Session
from loco_modelhost.models import Model
from loco_modelhost.options import Options
from loco_modelhost.pool import Loaded, Pool
from loco_modelhost.refusals import INVALID_NAME, Refusal
from loco_modelhost.store import Store
from loco_modelhost.thinking import ThinkingSplitter, without_thinking

Event = dict[str, Any]
Messages = list[dict[str, Any]]


async def chat(store: Store, pool: Pool, body: Body) -> AsyncIterator[Event]:
    """Events of a chat; `merged` makes one answer of them.

    Raises:
        Refusal: with Ollama's status and words.
    """
    started = time.monotonic_ns()
    requested = body.text("model")
    name = store.resolve(requested)
    if not name.is_valid:
        raise Refusal(400, "model is required")
    model = Model.load(store, requested, name)
    messages, empty = body.messages(), {"message": {"role": "assistant", "content": ""}}
    if not messages and body.has("keep_alive") and body.keep_alive() == 0:
        pool.unload(model)
        yield _event(requested, empty, done=True, done_reason="unload")
        return
    think = _think(model, requested, body)
    if body.any("tools"):
        _refuse_tools(model)
    options = _options(model, body)
    async with pool.use(model, options.num_ctx, body.keep_alive()) as loaded:
        load_ns = time.monotonic_ns() - started
        if not messages:
            yield _event(requested, empty, done=True, done_reason="load")
            return
        conversation = [*model.messages, *messages]
        if model.system and messages[0]["role"] != "system":
            conversation.insert(0, {"role": "system", "content": model.system})
        if model.config.model_family == "qwen3":
            conversation = without_thinking(conversation)
        answer = Answer(model, requested, body, options, think, loaded)
        prompt, tokens = await answer.prompt(conversation)
        if body.flag("_debug_render_only"):
            info = {"_debug_info": {"rendered_template": prompt}}
            yield _event(requested, empty | info, done=False)
            return
        async for content, thinking, final in answer.events(prompt, tokens):
            message = {"role": "assistant", "content": content}
            message |= {"thinking": thinking} if thinking else {}
            times = _times(started, load_ns) if final else {}
            yield _event(requested, {"message": message}, **times, **final)


async def generate(store: Store, pool: Pool, body: Body) -> AsyncIterator[Event]:
    """Events of a completion; `merged` makes one answer of them.

    Raises:
        Refusal: with Ollama's status and words.
    """
    started = time.monotonic_ns()
    requested, text = body.text("model"), body.text("prompt")
    name = store.resolve(requested)
    if not name.is_valid:
        raise Refusal(400, INVALID_NAME)
    model = Model.load(store, requested, name)
    if not text and body.has("keep_alive") and body.keep_alive() == 0:
        pool.unload(model)
        yield _event(requested, {"response": ""}, done=True, done_reason="unload")
        return
    raw = body.flag("raw")
    if raw and (body.has("template") or body.text("system") or body.any("context")):
        raise Refusal(400, "raw mode does not support template, system, or context")
    think = _think(model, requested, body)
    if body.text("suffix"):
        raise Refusal(400, f"{model.manifest.name} does not support insert")
    if template := body.text("template"):
        templates.check_stored(template)
    options = _options(model, body)
    async with pool.use(model, options.num_ctx, body.keep_alive()) as loaded:
        load_ns = time.monotonic_ns() - started
        if not text:
            yield _event(requested, {"response": ""}, done=True, done_reason="load")
            return
        answer = Answer(model, requested, body, options, think, loaded, template)
        if raw:
            prompt, tokens = text, await loaded.call(lambda engine: engine.tokenize(text))
        else:
            conversation = [] if body.any("context") else [*model.messages]
            if system := body.text("system") or model.system:
                conversation.insert(0, {"role": "system", "content": system})
            prompt, tokens = await answer.prompt([*conversation, {"role": "user", "content": text}])
        if earlier := body.any("context"):
            prompt = await loaded.call(lambda engine: engine.detokenize(earlier)) + prompt
            tokens = await loaded.call(lambda engine: engine.tokenize(prompt))
        if body.flag("_debug_render_only"):
            info = {"response": "", "_debug_info": {"rendered_template": prompt}}
            yield _event(requested, info, done=False)
            return
        said = ""
        async for content, thinking, final in answer.events(prompt, tokens):
            said += thinking + content
            extra: Event = {"thinking": thinking} if thinking else {}
            if final:
                extra |= _times(started, load_ns)
                if not raw:
                    whole = prompt + said
                    extra["context"] = await loaded.call(partial(Engine.tokenize, text=whole))
            yield _event(requested, {"response": content}, **extra, **final)


def merged(events: list[Event]) -> Event:
    """One answer of all events, as `stream: false` gets it."""
    last = dict(events[-1])
    if "message" in last:
        parts = [e["message"] for e in events]
        thinking = "".join(p.get("thinking", "") for p in parts)
        last["message"] = {"role": "assistant", "content": "".join(p["content"] for p in parts)}
        last["message"] |= {"thinking": thinking} if thinking else {}
        return last
    thinking = "".join(e.get("thinking", "") for e in events)
    last |= {"thinking": thinking} if thinking else {}
    return last | {"response": "".join(e["response"] for e in events)}


class Answer:
    """One request on a loaded model."""

    def __init__(
        self,
        model: Model,
        requested: str,
        body: Body,
        options: Options,
        think: bool | None,
        loaded: Loaded,
        template: str = "",
    ) -> None:
        self._model = model
        self._requested = requested
        self._body = body
        self._options = options
        self._think = think
        self._loaded = loaded
        self._template = template

    async def prompt(self, messages: Messages) -> tuple[str, list[int]]:
        """The rendered prompt and its tokens, cut to the context unless `truncate` is false."""
        return await self._loaded.call(lambda engine: self._fitted(engine, messages))

    async def events(self, prompt: str, tokens: list[int]) -> AsyncIterator[tuple[str, str, Event]]:
        """(content, thinking, {}) for each piece, then ("", "", counts)."""
        session = Session(
            tokens, self._options, self._options.num_ctx, _grammar(self._body.any("format"))
        )
        splitter = ThinkingSplitter(prompt, active=bool(self._think))
        async for piece in self._loaded.pieces(session):
            thinking, content = splitter.add(piece)
            if thinking or content:
                yield content, thinking, {}
        thinking, content = splitter.flush()
        tally = session.tally
        counts = {
            "prompt_eval_count": tally.prompt_tokens,
            "prompt_eval_duration": tally.prompt_ns,
            "eval_count": tally.generated_tokens,
            "eval_duration": tally.generated_ns,
        }
        final = {"done": True, "done_reason": tally.done_reason}
        yield content, thinking, final | {k: v for k, v in counts.items() if v}

    def _fitted(self, engine: Engine, messages: Messages) -> tuple[str, list[int]]:
        """Drops the oldest turns, but never a system prompt or the last turn, until it fits."""
        limit = self._options.num_ctx
        truncate = self._body.flag("truncate", default=True)
        for first in range(len(messages)):
            kept = [m for m in messages[:first] if m["role"] == "system"] + messages[first:]
            prompt = self._render(engine, kept)
            tokens = engine.tokenize(prompt)
            if not truncate or len(tokens) <= limit:
                break
        if len(tokens) < limit:
            return prompt, tokens
        if not truncate or self._model.uses_jinja:
            raise Refusal(400, _overflow(len(tokens), limit))
        return prompt, _cut(tokens, limit, self._options.num_keep + engine.adds_bos)

    def _render(self, engine: Engine, messages: Messages) -> str:
        if self._template or not self._model.uses_jinja:
            return templates.render_stored(self._template or self._model.template, messages)
        return templates.render_jinja(
            self._model.template,
            messages,
            bos=engine.bos,
            eos=engine.eos,
            think=self._think is not False,
            add_bos=engine.adds_bos,
        )


def _options(model: Model, body: Body) -> Options:
    options = model.options(body.mapping("options"))
    trained = model.gguf.context_length
    if options.num_ctx > trained > 0:
        options = options.updated({"num_ctx": trained})
    return options.updated({"num_ctx": max(options.num_ctx, 4)})


def _think(model: Model, requested: str, body: Body) -> bool | None:
    """What `think` means for this model: unset is true where it can think."""
    think = body.think()
    if "thinking" in model.capabilities:
        return True if think is None else think
    if think:
        raise Refusal(400, f'"{requested}" does not support thinking')
    return think


def _refuse_tools(model: Model) -> None:
    if "tools" not in model.capabilities:
        raise Refusal(400, f"{model.manifest.name} does not support tools")
    raise Refusal(400, "this model host does not parse tool calls; leave `tools` out")


def _grammar(form: Any) -> str | None:
    """The grammar of `format`: "json" or a JSON schema."""
    if form in (None, ""):
        return None
    if form == "json":
        return str(llama_grammar.JSON_GBNF)
    if not isinstance(form, dict):
        raise Refusal(
            400,
            f'invalid format: {json.dumps(form)}; expected "json" or a valid JSON Schema object',
        )
    return str(llama_grammar.json_schema_to_gbnf(json.dumps(form)))


def _overflow(tokens: int, context: int) -> str:
    """The error of llama.cpp's server, which Ollama passes on whole."""
    message = (
        f"request ({tokens} tokens) exceeds the available context size ({context} tokens), "
        "try increasing it"
    )
    kind = "exceed_context_size_error"
    error = {
        "code": 400,
        "message": message,
        "type": kind,
        "n_prompt_tokens": tokens,
        "n_ctx": context,
    }
    return json.dumps({"error": error}, separators=(",", ":"))


def _cut(tokens: list[int], context: int, keep: int) -> list[int]:
    """The silent cut of a prompt rendered by a Go template: its start and its end stay."""
    keep = max(0, min(keep, context - 1))
    size = context - max((context - keep) // 2, 1)
    return tokens[:keep] + tokens[len(tokens) - (size - keep) :]


def _times(started: int, load_ns: int) -> Event:
    return {"total_duration": time.monotonic_ns() - started, "load_duration": load_ns}


def _event(model: str, content: Event, *, done: bool = False, **more: Any) -> Event:
    created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": model, "created_at": created, **content, "done": done, **more}
