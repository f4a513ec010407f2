"""JSON request bodies, refused in the words of Go's decoder that Ollama passes on."""

import json
import math
import re
from typing import Any

from loco_modelhost.requests.refusals import Refusal

_GO_KINDS = ((bool, "bool"), (int | float, "number"), (str, "string"), (list, "array"))
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(h|ms|us|µs|ns|m|s)")

#: Messages of a chat: an answer's context would take no more.
MOST_MESSAGES = 16_384
#: Seconds a model stays loaded after a request that doesn't say.
DEFAULT_KEEP_ALIVE = 300.0


class Body:
    """The fields of one request. A field of another type than asked for is a 400."""

    def __init__(self, request: str, raw: bytes) -> None:
        """Decodes a body.

        Args:
            request: Ollama's name of the request type, for messages.
            raw: the body as received.
        """
        if not raw.strip():
            raise Refusal(400, "missing request body")
        try:
            values = json.loads(raw)
            if b"\\ud" in raw.lower():  # halves of characters alone, which no UTF-8 holds, as in Go
                whole = json.dumps(values, ensure_ascii=False).encode("utf-16", "surrogatepass")
                values = json.loads(whole.decode("utf-16", "replace"))
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"invalid JSON: {error}") from error
        self._request = request
        if not isinstance(values, dict):
            raise Refusal(
                400, f"json: cannot unmarshal {_go(values)} into Go value of type api.{request}"
            )
        self._values: dict[str, Any] = values

    def text(self, *names: str) -> str:
        """The first of these fields that is not empty."""
        return next((found for name in names if (found := self._get(name, str, "string"))), "")

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean field."""
        value = self._get(name, bool, "bool")
        return default if value is None else value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object field; empty when missing."""
        return self._get(name, dict, "map[string]interface {}") or {}

    def texts_by_name(self, name: str) -> dict[str, str] | None:
        """An object of strings; None when missing."""
        found: dict[str, Any] | None = self._get(name, dict, "map[string]string")
        for value in (found or {}).values():
            if not isinstance(value, str):
                raise self._wrong(name, value, "string")
        return found

    def messages(self) -> list[dict[str, Any]]:
        """The `messages` field, each with role and content."""
        found = self._get("messages", list, "[]api.Message") or []
        if len(found) > MOST_MESSAGES:
            raise Refusal(400, f"messages has {len(found)} entries; at most {MOST_MESSAGES}")
        return [self._message(m) for m in found]

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def any(self, name: str) -> Any:
        """A field of any type."""
        return self._values.get(name)

    def think(self) -> bool | None:
        """`think`: true, false, a level (which is true), or unset."""
        value = self._values.get("think")
        if value is None or isinstance(value, bool):
            return value
        if value in ("high", "medium", "low", "max"):
            return True
        raise Refusal(
            400,
            f'invalid think value: {json.dumps(value)} (must be "high", "medium", "low", "max", true, or false)',
        )

    def keep_alive(self) -> float:
        """Seconds to keep the model loaded; infinite for a negative value."""
        value = self._values.get("keep_alive")
        if value is None:
            return DEFAULT_KEEP_ALIVE
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Refusal(400, f"Unsupported type: '{_go(value)}'")
        try:
            seconds = _seconds(value) if isinstance(value, str) else float(value)
        except OverflowError:
            seconds = math.inf
        if math.isnan(seconds):
            raise Refusal(400, "keep_alive must be a number of seconds or a duration such as 5m")
        return math.inf if seconds < 0 else seconds

    def _message(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong("messages", value, "api.Message")
        for field in ("role", "content"):
            if not isinstance(value.get(field, ""), str):
                raise self._wrong(f"messages.{field}", value[field], "string")
        if value.get("role") not in ("system", "user", "assistant", "tool"):
            raise Refusal(400, f"invalid role: {value.get('role', '')}")
        return {**value, "content": value.get("content", "")}

    def _get(self, name: str, kind: type, go: str) -> Any:
        value = self._values.get(name)
        if value is None or isinstance(value, kind):
            return value
        raise self._wrong(name, value, go)

    def _wrong(self, name: str, value: Any, go: str) -> Refusal:
        return Refusal(
            400,
            f"json: cannot unmarshal {_go(value)} into Go struct field "
            f"{self._request}.{name} of type {go}",
        )


def _go(value: Any) -> str:
    return next((name for kind, name in _GO_KINDS if isinstance(value, kind)), "object")


def _seconds(text: str) -> float:
    """A Go duration: `5m`, `1h30m`, `-1s`, `0`."""
    digits = text.lstrip("+-")
    sign = -1 if text.startswith("-") else 1
    parts = _DURATION.findall(digits)
    if digits.replace(".", "", 1).isdigit():
        return sign * float(digits)
    if not parts or "".join(n + u for n, u in parts) != digits:
        raise Refusal(400, f'time: invalid duration "{text}"')
    return sign * sum(float(n) * _UNITS[u] for n, u in parts)
