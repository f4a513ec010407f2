"""serving_reference.json: prompts as trained, and what the GGUF itself answers, for register's proof.

A server is compared with it: same text, same tokens, same greedy answers, same tensors and vocabulary.
"""

import hashlib
import json
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from loco.contracts.errors import DataError, ExportFailed
from loco.contracts.serving import PLAIN, PROBE, ReferencePrompt, ServingReference
from loco.contracts.specs import Inputs
from loco.stage.program import Emitter
from loco_trainer.data import served, thoughts
from loco_trainer.data.template import Message, Template
from loco_trainer.gguf import head
from loco_trainer.gguf.check import GgufModel

#: Limit of generated tokens of an answer, and of one that is to cost little.
NUM_PREDICT = 64
FEW = 24
#: So many answers may run to the recipe's own limit, or to this one, to see whether they end.
_LONG = 3
_LONGEST = 256
#: After so many seconds of answers the others are short; one long answer there is always.
_SECONDS = 10.0
#: Validation rows that are asked.
_ROWS = 6
_ROW = "validation-"
_SYSTEM = {"role": "system", "content": "Answer in one short sentence."}
_UNICODE = (
    " Ünïcödé,\u00a0a\u2009thin\u3000wide space — “quotes”,\n\ttabs\u200b, 日本語 한국어 العربية, "
    "👩‍👩‍👧‍👦🇩🇪 ½ ﬁ?  "
)


def conversations(inputs: Inputs, template: Template, *, longest: int) -> dict[str, list[Message]]:
    """What is compared, by name; only what the template takes and the context has room for.

    Args:
        inputs: has prepare's rows, or not.
        template: of the training.
        longest: tokens of a prompt; `plain` may be longer.

    `plain` has the system prompt of the training where there is one, `without_system` leaves it to the
    server; the validation rows (of prepare, else its training rows) are what base and adapter differ in.
    """
    asked: list[Message] = [{"role": "user", "content": PROBE}]
    own = [{"role": "system", "content": template.system}] if template.system else []
    turns = [
        {"role": "user", "content": "Name a  colour. "},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": " And another?\n"},
    ]
    found: dict[str, list[Message]] = {
        PLAIN: [*own, *asked],
        "system": [_SYSTEM, *asked],
        "multi_turn": turns,
        "unicode": [{"role": "user", "content": _UNICODE}],
    }
    if own:
        found["without_system"] = asked
    for number, messages in enumerate(_rows(inputs), 1):
        # tokenizers of Qwen compose letters and accents, llama.cpp takes them as they come: of a text
        # with loose accents they make different tokens whatever was exported
        found[f"{_ROW}{number}"] = [
            {**m, "content": unicodedata.normalize("NFC", m["content"])} for m in messages
        ]
    return {
        name: messages
        for name, messages in found.items()
        if name == PLAIN or _takes(template, messages, longest)
    }


def prompts(
    said: dict[str, list[Message]],
    template: Template,
    embedded: str,
    model: GgufModel,
    *,
    think: bool,
) -> list[ReferencePrompt]:
    """The prompts with their tokens, which the GGUF's tokenizer has to make too.

    Args:
        said: the conversations, by name.
        template: of the training.
        embedded: what the GGUF has, which must render them as the training's does.
        model: the GGUF.
        think: the branch of the training.

    Raises:
        ExportFailed: text or tokens are not those of the training.
    """
    found = []
    for name, messages in said.items():
        rendered = served.require_same(template, embedded, messages, think=think)
        ids = template.encode(rendered)
        bos = template.tokenizer.bos_token_id
        if model.adds_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        if (seen := model.served(rendered)) != ids:
            place = next((n for n, (a, b) in enumerate(zip(ids, seen, strict=False)) if a != b), -1)
            raise ExportFailed(
                f"The tokenizer in the GGUF makes {len(seen)} tokens of the prompt `{name}`, "
                f"the tokenizer of training {len(ids)}. They differ at token {place}.",
                hint="llama.cpp may not know this tokenizer (`tokenizer.ggml.pre`). Choose "
                "another base model.",
            )
        found.append(
            ReferencePrompt(name=name, messages=tuple(messages), rendered=rendered, tokens=len(ids))
        )
    return found


def longest_answer(num_predict: int) -> int:
    """Most tokens that any answer may have, with the recipe's limit."""
    return max(NUM_PREDICT, min(num_predict, _LONGEST))


def answered(
    asked: Sequence[ReferencePrompt],
    model: GgufModel,
    stop: Sequence[str],
    emit: Emitter,
    *,
    num_predict: int,
    num_ctx: int,
) -> list[ReferencePrompt]:
    """The prompts, of which `plain` and the validation rows have greedy answers.

    Args:
        asked: the prompts.
        model: the GGUF.
        stop: texts that end an answer.
        emit: of the stage.
        num_predict: the recipe's limit of tokens, to which the first validation answers may run.
        num_ctx: tokens of a prompt and its answer.

    Raises:
        Stopped: a stop was asked for.
    """
    found = []
    started = time.monotonic()
    rows = 0
    for prompt in asked:
        if prompt.name != PLAIN and not prompt.name.startswith(_ROW):
            found.append(prompt)
            continue
        emit.check_stop()
        rows += prompt.name != PLAIN
        quick = time.monotonic() - started < _SECONDS
        limit = NUM_PREDICT if quick or prompt.name == PLAIN else FEW
        if rows == 1 or (1 < rows <= _LONG and quick):
            limit = min(num_predict, _LONGEST, num_ctx - prompt.tokens)
        answer = model.answer(prompt.rendered, tokens=limit, stop=stop)
        said = {"answer": answer.text, "answer_tokens": answer.tokens, "ended": answer.ended}
        found.append(prompt.model_copy(update={**said, "num_predict": limit}))
    return found


def reference(
    gguf: Path, contents: head.Contents, asked: Sequence[ReferencePrompt]
) -> ServingReference:
    """All of it, with the GGUF's own description."""
    details = head.details(gguf)
    text = contents.chat_template or ""
    return ServingReference(
        prompts=tuple(asked),
        num_predict=NUM_PREDICT,
        chat_template_sha256=hashlib.sha256(text.encode()).hexdigest(),
        architecture=contents.architecture or "",
        context_length=details.context_length,
        parameter_count=details.parameters,
        tensors=details.tensors,
        vocabulary=len(details.tokens),
        vocabulary_sha256=hashlib.sha256(json.dumps(details.tokens).encode()).hexdigest(),
        thinks=served.can_think(text),
    )


def trained_branch(inputs: Inputs) -> bool:
    """Whether the training asked for thoughts: every one of its rows has them."""
    path = inputs.files.get("prepare/training_data.jsonl")
    return served.thinking_branch(_conversations(path)) if path else False


def _rows(inputs: Inputs) -> list[list[Message]]:
    """The questions of the first rows, without their last answers."""
    for name in ("prepare/validation_data.jsonl", "prepare/training_data.jsonl"):
        path = inputs.files.get(name)
        found: list[list[Message]] = []
        for messages in _conversations(path) if path else ():
            said = [{"role": m["role"], "content": m["content"]} for m in messages[:-1]]
            if said not in found and not any(map(thoughts.thinks, said)):
                found.append(said)
            if len(found) == _ROWS:
                break
        if found:
            return found
    return []


def _conversations(path: Path) -> Iterator[list[Message]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)["conversations"]


def _takes(template: Template, messages: list[Message], longest: int) -> bool:
    try:
        prompt = template.prompt(messages)
    except DataError:
        return False
    first = messages[0]
    if first["role"] == "system" and first["content"].strip() not in prompt:
        return False  # left out
    return len(template.encode(prompt)) <= longest
