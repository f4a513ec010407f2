"""What a server shows of a model (/api/show, a rendered prompt) against what was sent and trained."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Longest text of either side in a message.
_SHOWN = 160
#: A BOS token's text, where the server does not show the vocabulary.
_BOS = re.compile(r"<[^<>\s]{1,40}>")


def parameter_faults(
    shown: Mapping[str, Any], parameters: Mapping[str, Any], system: str | None
) -> Iterator[str]:
    """What of the parameters and the system prompt is not as it was sent.

    Args:
        shown: the answer of /api/show.
        parameters: as sent to /api/create.
        system: as sent; None: none was.
    """
    there = stored_parameters(str(shown.get("parameters", "")))
    for name, sent in parameters.items():
        values = there.get(name, [])
        if isinstance(sent, list):
            if set(values) != set(sent):
                yield f"{name} is {values or 'missing'} instead of {sent}"
        elif [float(sent)] != [float(v) for v in values if isinstance(v, int | float)]:
            yield f"{name} is {values[0] if values else 'missing'} instead of {sent}"
    seen, wanted = str(shown.get("system", "")).strip(), (system or "").strip()
    if seen != wanted:
        yield f"the system prompt differs {difference(wanted, seen)}"


def stored_parameters(text: str) -> dict[str, list[Any]]:
    """Parameters as /api/show writes them, `NAME    VALUE` a line, a list one line an item."""
    found: dict[str, list[Any]] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        try:
            found.setdefault(name, []).append(json.loads(value.strip()))
        except ValueError:
            found.setdefault(name, []).append(value.strip().strip('"'))
    return found


def own_beginning(shown: Mapping[str, Any]) -> str | re.Pattern[str]:
    """The BOS token that the server's tokenizer may add, and so leaves out of a rendered prompt."""
    info = shown.get("model_info") or {}
    if info.get("tokenizer.ggml.add_bos_token") is False:
        return ""
    tokens, bos = info.get("tokenizer.ggml.tokens"), info.get("tokenizer.ggml.bos_token_id")
    return str(tokens[bos]) if tokens and isinstance(bos, int) else _BOS


def same_prompt(seen: str, expected: str, beginning: str | re.Pattern[str]) -> bool:
    """Whether a prompt is rendered as in training, but for a BOS token that the tokenizer adds.

    Args:
        seen: as the server renders it.
        expected: as training does.
        beginning: see `own_beginning`.
    """
    if not expected.endswith(seen):
        return False
    head = expected[: len(expected) - len(seen)]
    return not head or re.fullmatch(beginning, head) is not None


def difference(expected: str, seen: str) -> str:
    """Where two texts part, and a few characters of both from there."""
    at = shared_start(expected, seen)
    return (
        f"from character {at} on {quoted(seen[at : at + 60])} "
        f"instead of {quoted(expected[at : at + 60])}"
    )


def quoted(text: str) -> str:
    """A text as people read it in a message, its middle left out where it is long."""
    shown = repr(text)
    if len(shown) <= _SHOWN:
        return shown
    return f"{shown[: _SHOWN // 2]} … {shown[-_SHOWN // 2 :]}"


def shared_start(a: str, b: str) -> int:
    """Characters two texts share from their start."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
