"""What the study's server makes of a request's options."""

import secrets
from collections.abc import Mapping
from typing import Any

from decode_sampling import MOST_CANDIDATES
from decode_slots import Start

#: Ollama's own defaults.
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "num_ctx": 4096, "num_predict": -1}
#: All that are heard: a figure must not come of options that were sent and not followed.
_KNOWN = (*DEFAULTS, "seed")


class Refusal(Exception):
    """A request that gets an error, as Ollama words it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def start(prompt: list[int], body: Mapping[str, Any], length: int) -> Start:
    """How an answer is made.

    Args:
        prompt: tokens.
        body: of the request.
        length: most tokens of prompt and answer.

    Raises:
        Refusal: an option is unknown or no number, or leaves no room for an answer.
    """
    given = body.get("options") or {}
    if not isinstance(given, Mapping):
        raise Refusal(400, "options is no object")
    if unknown := sorted(set(given).difference(_KNOWN)):
        raise Refusal(
            400, f"options: no {', '.join(unknown)} on this server, only {', '.join(_KNOWN)}"
        )
    options = {**DEFAULTS, **given}
    try:
        context = min(int(options["num_ctx"]), length)
        most = int(options["num_predict"])
        temperature, top_p = float(options["temperature"]), float(options["top_p"])
        top_k, seed = int(options["top_k"]), options.get("seed")
        seed = secrets.randbits(63) if seed is None else int(seed)
    except (TypeError, ValueError) as error:
        raise Refusal(400, f"options: {error}") from error
    if temperature > 0 and not 1 <= top_k <= MOST_CANDIDATES:
        raise Refusal(400, f"top_k is {top_k}; this server draws from 1 to {MOST_CANDIDATES}")
    if len(prompt) >= context:
        raise Refusal(
            400,
            f"the prompt has {len(prompt)} tokens, which leaves no room for an answer in "
            f"{context}: raise num_ctx, or --max-length of the server",
        )
    limit = min(context, len(prompt) + most) if most > 0 else context
    seed = (seed + 2**63) % 2**64 - 2**63  # as an int64
    return Start(prompt, limit, max(0.0, temperature), max(1, min(top_k, 64)), top_p, seed)
