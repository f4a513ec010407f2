"""/api/embed: texts in, vectors of length 1 out."""

import math
import time
from typing import Any

from loco_modelhost.engine.pool import Pool, Slot
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.refusals import INVALID_NAME, Refusal, not_found
from loco_modelhost.store.models import Model
from loco_modelhost.store.store import Store

#: Texts of a request, as OpenAI limits them.
MOST_INPUTS = 2048
_TOO_LONG = "the input length exceeds the context length"


async def embed(store: Store, pool: Pool, body: Body) -> dict[str, Any]:
    """The answer: the last token's last hidden state of each text, as Ollama takes it of a chat model.

    Raises:
        Refusal: with Ollama's status and words.
    """
    started = time.monotonic_ns()
    requested = body.text("model")
    name = store.resolve(requested)
    if not requested:
        raise not_found(requested)
    if not name.is_valid:
        raise Refusal(400, INVALID_NAME)
    texts = _texts(body.any("input"))
    dimensions = _dimensions(body.any("dimensions"))
    model = Model.load(store, requested, name)
    options = model.options(body.mapping("options"))
    trained = model.gguf.context_length or options.num_ctx
    context = max(4, min(options.num_ctx, trained))
    async with pool.use(model, context, body.keep_alive()) as slot:
        loaded = time.monotonic_ns()
        truncate = body.flag("truncate", default=True)
        cut = [await _tokens(slot, text, context, truncate=truncate) for text in texts]
        vectors = [await slot.embed(tokens) for tokens in cut]
    return {
        "model": requested,
        "embeddings": [_normal(vector[:dimensions]) for vector in vectors],
        "total_duration": time.monotonic_ns() - started,
        "load_duration": loaded - started,
        "prompt_eval_count": sum(map(len, cut)),
    }


def _texts(given: Any) -> list[str]:
    if given is None:
        return []
    if isinstance(given, str):
        return [given] if given else []
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise Refusal(400, "invalid input type")
    if len(given) > MOST_INPUTS:
        raise Refusal(400, f"input has {len(given)} texts; at most {MOST_INPUTS}")
    return given


def _dimensions(given: Any) -> int | None:
    if given in (None, 0):
        return None
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise Refusal(400, "dimensions must be a whole number above 0")
    return given


async def _tokens(slot: Slot, text: str, context: int, *, truncate: bool) -> list[int]:
    """The text's tokens; of one longer than the context its start."""
    tokens = await slot.tokenize(text)
    if tokens.count <= context:
        return tokens.ids
    if not truncate:
        raise Refusal(400, _TOO_LONG)
    return tokens.ids[:context]


def _normal(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector
