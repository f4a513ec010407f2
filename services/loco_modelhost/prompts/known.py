"""Chat templates Ollama knows: at create, a GGUF's Jinja template that resembles one is replaced.

Ollama's own version of it (a Go template) then renders, unless the GGUF's can do more (tools, thinking). It
is not always the same prompt: ChatML drops a default system prompt, Gemma 3 gets a newline too many and is
not trimmed, Llama 3 loses its BOS. known.json has the texts, from Ollama's sources; the functions here
render what Go would of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loco_modelhost.requests.refusals import Refusal

Message = Mapping[str, Any]

#: Ollama's template of a model without any.
PROMPT_ONLY = "{{ .Prompt }}"
#: Two templates this many edits apart are not the same one any more (template.Named in Ollama).
MOST_EDITS = 100


@dataclass(frozen=True)
class Known:
    """One of Ollama's templates."""

    name: str
    #: The Go template that is stored with the model.
    text: str
    #: Parameters that come with it.
    parameters: dict[str, Any]


def detected(jinja: str) -> Known | None:
    """What Ollama takes a GGUF's Jinja template for: the nearest, within 100 edits."""
    best, name = MOST_EDITS, ""
    for candidate, text in _index()["jinja"]:
        found = edits(jinja, text, best)
        if found < best:
            best, name = found, candidate
    return _known(name) if name else None


def edits(a: str, b: str, limit: int) -> int:
    """Levenshtein distance of two texts, or `limit` when it is not less."""
    if abs(len(a) - len(b)) >= limit:
        return limit
    row = [min(place, limit) for place in range(len(b) + 1)]
    for i, left in enumerate(a, 1):
        # cells further than `limit` from the diagonal are at least that far apart
        first, last = max(1, i - limit), min(len(b), i + limit)
        before, beside = row[first - 1], i if first == 1 else limit
        row[first - 1] = least = min(beside, limit)
        for j in range(first, last + 1):
            above = row[j] if j < i + limit else limit
            cost = before if left == b[j - 1] else 1 + min(before, above, beside)
            before, row[j] = row[j], cost
            beside = cost
            least = min(least, cost)
        if least >= limit:
            return limit
    return min(row[-1], limit)


def check_stored(template: str) -> None:
    """Refuses a Go template this host can't render.

    Raises:
        Refusal: 400, with what to do instead.
    """
    if template.replace("\r\n", "\n") not in {PROMPT_ONLY, *_index()["go"].values()}:
        raise Refusal(
            400,
            "template error: this model host renders a GGUF's own chat template, "
            f"{', '.join(_RENDERERS)} as Ollama has them and `{{{{ .Prompt }}}}`, but no other "
            "Go template. Leave `template` out and embed the chat template in the GGUF "
            "(tokenizer.chat_template)",
        )


def render_stored(template: str, messages: Sequence[Message]) -> str:
    """The prompt of a Go template that `check_stored` lets pass."""
    alike: list[list[Message]] = []
    for message in messages:
        if alike and alike[-1][0]["role"] == message["role"] != "tool":
            alike[-1].append(message)
        else:
            alike.append([message])
    merged = [
        {"role": turns[0]["role"], "content": "\n\n".join(turn["content"] for turn in turns)}
        for turns in alike
    ]
    names = {text: name for name, text in _index()["go"].items()}
    if name := names.get(template):
        return _RENDERERS[name](merged)
    # `{{ .Prompt }}` knows no roles: each user turn is its prompt, each answer follows it
    return "".join(m["content"] for m in merged if m["role"] != "system")


def _turns(
    before: str, between: str, after: str, last: str
) -> Callable[[list[dict[str, str]]], str]:
    """A template that writes every turn alike, the system prompt too."""

    def render(messages: list[dict[str, str]]) -> str:
        turns = (f"{before}{m['role']}{between}{m['content']}{after}" for m in messages)
        return "".join(turns) + last

    return render


def _gemma(messages: list[dict[str, str]]) -> str:
    """The system prompts stand in the next user's turn, without a blank line."""
    text, system = "", ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system = f"{system}\n\n{content}" if system else content
            continue
        if role == "user":
            text += f"<start_of_turn>user\n{system}" if system else "<start_of_turn>user"
            system = ""
        elif role == "assistant":
            text += "<start_of_turn>model"
        text += f"\n{content}<end_of_turn>\n"
    return f"{text}<start_of_turn>model\n"


def _gemma3(messages: list[dict[str, str]]) -> str:
    """The file ends with a newline, which Go writes: the prompt has one more than Gemma 3's own."""
    text = ""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    for place, message in enumerate(messages):
        if message["role"] == "user":
            first = f"\n{system}\n" if place == 1 and system else ""
            text += f"<start_of_turn>user{first}\n{message['content']}<end_of_turn>\n"
        elif message["role"] == "assistant":
            text += f"<start_of_turn>model\n{message['content']}<end_of_turn>\n"
    return f"{text}<start_of_turn>model\n\n" if messages else "\n"


_RENDERERS: dict[str, Callable[[list[dict[str, str]]], str]] = {
    "chatml": _turns("<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    "gemma-instruct": _gemma,
    "gemma3-instruct": _gemma3,
    "llama3-instruct": _turns(
        "<|start_header_id|>",
        "<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "phi-3": _turns("<|", "|>\n", "<|end|>\n", "<|assistant|>\n"),
    "zephyr": _turns("<|", "|>\n", "</s>\n", "<|assistant|>\n"),
}


@cache
def _index() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("known.json").read_bytes())
    return found


def _known(name: str) -> Known:
    return Known(name, _index()["go"][name], _index()["parameters"][name])
