"""One request on a loaded model: the prompt it renders to, and the events of its answer."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from loco_modelhost.answers.thinking import ThinkingSplitter
from loco_modelhost.engine.pool import Slot
from loco_modelhost.engine.session import Session
from loco_modelhost.prompts import known
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.options import Options
from loco_modelhost.requests.refusals import Refusal
from loco_modelhost.store.models import Model

Event = dict[str, Any]
Messages = list[dict[str, Any]]


@dataclass
class Answer:
    """What a chat and a generate request have in common.

    Attributes:
        requested: the model's name as the client wrote it; answers repeat it.
        template: a template of the request's own, instead of the model's.
    """

    model: Model
    requested: str
    options: Options
    think: bool | None
    truncate: bool
    form: dict[str, Any] | str | None
    template: str = ""
    started: int = field(default_factory=time.monotonic_ns)
    loaded_at: int = 0

    @classmethod
    def of(cls, model: Model, requested: str, body: Body) -> "Answer":
        """Checks what the request asks of the model.

        Raises:
            Refusal: the model can't do it (400), or an option has a wrong type (500).
        """
        template = body.text("template")
        if template:
            known.check_stored(template)
        return cls(
            model,
            requested,
            _options(model, body),
            _think(model, requested, body),
            truncate=body.flag("truncate", default=True),
            form=_form(body.any("format")),
            template=template,
        )

    def event(self, content: Event, *, done: bool = False, **more: Any) -> Event:
        """One line of the answer."""
        created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        head = {"model": self.requested, "created_at": created}
        return {**head, **content, "done": done, **more}

    async def prompt(self, slot: Slot, messages: Messages) -> tuple[str, list[int]]:
        """The rendered prompt and its tokens, cut to the context unless `truncate` is false."""
        limit = self.options.num_ctx
        # drops the oldest turns, but never a system prompt or the last turn, until it fits
        for first in range(self._first(messages), len(messages)):
            kept = [m for m in messages[:first] if m["role"] == "system"] + messages[first:]
            prompt = await self._render(slot, kept)
            tokens = await slot.tokenize(prompt, limit, self.options.num_keep)
            if not self.truncate or tokens.count <= limit:
                break
        if tokens.count >= limit and (not self.truncate or self._uses_jinja):
            raise Refusal(400, _overflow(tokens.count, limit))
        return prompt, tokens.ids

    async def pieces(
        self, slot: Slot, prompt: str, tokens: list[int]
    ) -> AsyncIterator[tuple[str, str, Event]]:
        """(content, thinking, {}) for each piece, at last what was held back and the counts."""
        grammar = await slot.confined.grammar(self.form) if self.form is not None else None
        session = Session(tokens, self.options, self.options.num_ctx, grammar)
        splitter = ThinkingSplitter(prompt, active=bool(self.think))
        async for piece in slot.pieces(session):
            thinking, content = splitter.add(piece)
            if thinking or content:
                yield content, thinking, {}
        thinking, content = splitter.flush()
        tally = session.tally
        counts = {
            "total_duration": time.monotonic_ns() - self.started,
            "load_duration": self.loaded_at - self.started,
            "prompt_eval_count": tally.prompt_tokens,
            "prompt_eval_duration": tally.prompt_ns,
            "eval_count": tally.generated_tokens,
            "eval_duration": tally.generated_ns,
        }
        final = {"done": True, "done_reason": tally.done_reason}
        yield content, thinking, final | {k: v for k, v in counts.items() if v}

    def _first(self, messages: Messages) -> int:
        """The first turn that may fit: one is no less than a token."""
        return max(0, len(messages) - self.options.num_ctx) if self.truncate else 0

    @property
    def _uses_jinja(self) -> bool:
        return self.model.uses_jinja and not self.template

    async def _render(self, slot: Slot, messages: Messages) -> str:
        if not self._uses_jinja:
            return known.render_stored(self.template or self.model.template, messages)
        assert slot.facts
        return await slot.confined.render(
            self.model.template, messages, slot.facts, think=self.think is not False
        )


def _options(model: Model, body: Body) -> Options:
    """The model's and the request's options, the context within what the model was trained for."""
    options = model.options(body.mapping("options"))
    trained = model.gguf.context_length or options.num_ctx
    return options.updated({"num_ctx": max(4, min(options.num_ctx, trained))})


def _think(model: Model, requested: str, body: Body) -> bool | None:
    """What `think` means for this model: unset is true where it can think."""
    think = body.think()
    if "thinking" in model.capabilities:
        return True if think is None else think
    if think:
        raise Refusal(400, f'"{requested}" does not support thinking')
    return think


def _form(form: Any) -> dict[str, Any] | str | None:
    """`format`: "json" or a JSON schema."""
    if form in (None, ""):
        return None
    if form == "json" or isinstance(form, dict):
        return form
    raise Refusal(
        400,
        f'invalid format: {json.dumps(form)}; expected "json" or a valid JSON Schema object',
    )


def _overflow(tokens: int, context: int) -> str:
    """The error of llama.cpp's server, which Ollama passes on whole."""
    error = {
        "code": 400,
        "message": f"request ({tokens} tokens) exceeds the available context size "
        f"({context} tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": tokens,
        "n_ctx": context,
    }
    return json.dumps({"error": error}, separators=(",", ":"))
