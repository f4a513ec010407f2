"""Writes the first recipe of a task: `loco new units --data rows.csv`."""

import json
import re
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from uuid import uuid4

from loco.contracts.errors import Conflict, InvalidRequest
from loco.contracts.files import sync_folder, write_text
from loco.contracts.specs import NAME_PATTERN
from loco.drafting.rows import Divided, jsonl, problem_line, training_line
from loco.grading.significance import smallest_difference
from loco.recipes.resolve import RECIPE

ROWS = "rows.jsonl"
PROBLEMS = "eval_dataset.jsonl"
DEFAULT_BASE = "qwen3-4b"
#: The base of profile `tiny`: its weights come with the training environment, so it needs no hub.
TINY_BASE = "smollm2-135m-instruct"

#: Rows from which some are kept out of training to measure the loss on, and how many at most.
_VALIDATED_FROM = 200
_MOST_VALIDATION = 32
#: Rows that training sees in all, at least: few rows are seen more often.
_SEEN = 480
_MOST_EPOCHS = 12
#: Profile `tiny` sees each row half as often, at five times the learning rate: the CPU's time counts.
_TINY_SHARE = 2
#: A token has about four characters of English; three is careful.
_CHARACTERS = 3
_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Draft:
    """What was written."""

    folder: Path
    name: str
    base: str
    divided: Divided
    #: Gain that the eval set can show at all, a share; none: nothing.
    shows: float | None


def check_name(name: str) -> None:
    """Raises InvalidRequest unless it can be an adapter's."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"{name!r:.80} cannot be the name of an adapter.",
            param="name",
            hint="Use small letters, digits and hyphens. Start with a letter or digit.",
        )


def place_of(name: str, here: Path) -> Path:
    """Where the adapter's folder lies or goes: in ./adapters if that exists, else here."""
    check_name(name)
    adapters = here / "adapters"
    return (adapters if adapters.is_dir() else here) / name


def write(folder: Path, name: str, found: Divided, *, base: str, seed: int) -> Draft:
    """Writes recipe, rows and eval set, all or nothing.

    Args:
        folder: the adapter's, which must not be there.
        name: of the adapter.
        found: the rows.
        base: name of a base model of the catalog.
        seed: of the split, for the record.

    Raises:
        InvalidRequest: `base` can be no name of the catalog.
        Conflict: the folder is there.
    """
    if not re.fullmatch(NAME_PATTERN, base):
        raise InvalidRequest(
            f"--base {base!r:.80} is not in the catalog.",
            param="--base",
            hint="Name a base model from adapters/base_models.yaml, like qwen3-4b.",
        )
    if folder.exists():
        raise Conflict(
            f"{folder} already exists.",
            param="name",
            hint="Choose another name, or move the folder away.",
        )
    draft = Draft(folder, name, base, found, smallest_difference(len(found.problems)))
    part = folder.with_name(f".{name}.{uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    try:
        write_text(part / ROWS, jsonl([training_line(row) for row in found.training]))
        lines = [problem_line(row, found.picked) for row in found.problems]
        write_text(part / PROBLEMS, jsonl(lines))
        write_text(part / RECIPE, recipe_text(draft, seed))
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(folder.parent)
    return draft


def recipe_text(draft: Draft, seed: int) -> str:
    """The recipe with its comments."""
    found = draft.divided
    rows, problems = len(found.training), len(found.problems)
    validation = min(_MOST_VALIDATION, rows // 10) if rows >= _VALIDATED_FROM else 0
    examples = rows - validation
    epochs = min(_MOST_EPOCHS, max(3, ceil(_SEEN / examples)))
    length = _length(found.longest)
    predict = min(1024, max(128, 2 * ceil(found.longest_answer / _CHARACTERS)))
    predict = 1 << (predict - 1).bit_length()  # the next power of two
    context = 1 << (length + predict - 1).bit_length()
    shows = (
        f"{problems} problems can show a gain of {100 * draft.shows:.0f} points or more."
        if draft.shows is not None
        else f"{problems} problems are too few to prove anything: add more rows."
    )
    kept = (
        f"{validation} more rows measure the loss during training"
        if validation
        else "there are too few rows to keep some for this; the eval set decides"
    )
    file, name = json.dumps(found.file)[1:-1], draft.name
    return f"""\
# The recipe of {name}, drafted by `loco new` from {file}: {rows} rows to learn from, {problems} to measure with.
# Change what you like. docs/recipes.md explains every field. `loco check {name}` checks everything before
# it costs GPU time.
name: {name}
description: {json.dumps(f"Answers like the examples in {found.file}.", ensure_ascii=False)}  # what `loco adapters` shows
base_model: {draft.base}  # the base model to train; `--base` of `loco new` chose it
model_name: locollm-{name}  # its name in Ollama

prepare:
  # One row a line: {{"question": …, "answer": …}}, or a chat: {{"messages": […]}}. Add as many as you like.
  source: {{kind: jsonl, path: {ROWS}}}
  examples: {examples}  # how many of them to learn from; raise it when you add rows
  validation: {validation}  # {kept}

train:
  # r: how much the adapter can learn, alpha: how strong it is. These values fit most tasks.
  lora: {{r: 16, alpha: 32, target_modules: all-linear}}
  learning_rate: 2.0e-4  # too high: it forgets, too low: it learns nothing; try half and double
  epochs: {epochs}  # how often training sees each row; more often if there are few rows
  batch_size: 8
  gradient_accumulation: 1
  max_length: {length}  # in tokens; your longest row has about {ceil(found.longest / _CHARACTERS)}, and a longer one would be cut

register:
  temperature: 0.0
  num_ctx: {context}
  num_predict: {predict}

eval:
  num_ctx: {context}
  num_predict: {predict}  # most tokens of an answer; your longest has about {ceil(found.longest_answer / _CHARACTERS)}
  sets:
    # Rows that training never sees (split with seed {seed}). Grader `{found.picked.kind}`:
    # {found.picked.why}.
    held_out: {{source: {{kind: jsonl, path: {PROBLEMS}}}, role: primary}}
  gate:
    # A version is promoted unless it is worse than the one that serves. It is called `better` only if
    # that is not luck (p < 0.05). {shows}
    min_problems: {min(problems, 100)}

profiles:
  default: {{}}

  # A rehearsal: minutes on a CPU, no hub, no GPU. It shows that everything works. The base is so small
  # that it learns little.
  tiny:
    base_model: {TINY_BASE}
    train: {{learning_rate: 1.0e-3, epochs: {ceil(epochs / _TINY_SHARE)}, max_length: {min(length, 512)}}}
    eval: {{baselines: [base, promoted]}}  # without `instructed`, which would add half as many questions
"""


def _length(characters: int) -> int:
    tokens = ceil(characters / _CHARACTERS) + 64  # the template's own
    return next((length for length in _LENGTHS if length >= tokens), _LENGTHS[-1])
