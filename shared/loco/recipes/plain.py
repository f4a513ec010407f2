"""Plain recipes: made for jobs that bring rows and a base model, but no recipe of their own.

OpenAI's fine-tuning API knows no recipes, and here every job has one: it is made beside the others the
first time, and is the user's to change from then on.
"""

import hashlib
import os
import re
from pathlib import Path

from loco.contracts.errors import Conflict
from loco.contracts.files import sync_folder
from loco.contracts.specs import BaseModelSpec
from loco.recipes.documents import parsed_yaml
from loco.recipes.resolve import RECIPE, Recipe
from loco.recipes.swap import writable

#: In front of their names, so that none stands in for an adapter that somebody wrote.
PREFIX = "ft"
#: Of all, so that requests cannot fill the adapters folder.
MOST = 1000
#: And of one owner.
MOST_OF_OWNER = 100
#: The file beside such a recipe that says whose request made it.
MADE_BY = ".made_by"
#: `locollm-` and the name are the model's in Ollama, which may have 63 characters.
_LONGEST = 63 - len("locollm-")
#: Billions of parameters under which a base learns little at the usual rate (docs/learning.md).
_SMALL = 1.0

_TEXT = """\
# Made for OpenAI's fine-tuning API (docs/openai.md). Change what you like: the next job reads it. The rows,
# their number and what a request sets come with each job. With sets of problems in eval.sets
# (docs/eval.md) jobs are measured, too, and the gate decides which one serves as {model}:latest.
name: {name}
description: Fine-tuned from {base} over OpenAI's API.
base_model: {base}
model_name: {model}
train:
  lora: {{target_modules: all-linear}}
  learning_rate: {rate}
eval: {{sets: {{}}}}
"""


def standard_rate(base: BaseModelSpec) -> float:
    """The peak learning rate that LoRA on all linear layers of a base is trained with."""
    return 1e-3 if base.parameters_billion < _SMALL else 2e-4


def plain_name(base: str, suffix: str | None) -> str:
    """The adapter of a base and a suffix: lower case, digits and hyphens, and a digest where it is cut.

    Args:
        base: name in the catalog.
        suffix: any text.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")
    name = "-".join(part for part in (PREFIX, base, slug) if part)
    told = name if slug or not suffix else f"{name}\0{suffix}"  # a suffix without a letter or digit
    if len(name) <= _LONGEST and told == name:
        return name
    digest = hashlib.sha256(told.encode()).hexdigest()[:6]
    return f"{name[: _LONGEST - 7].rstrip('-')}-{digest}"


def plain_recipe(base: BaseModelSpec, suffix: str | None) -> Recipe:
    """The recipe that `ensure_plain` would make."""
    return Recipe.model_validate(parsed_yaml(_text(base, plain_name(base.name, suffix))))


def ensure_plain(adapters_dir: Path, base: BaseModelSpec, suffix: str | None, owner: str) -> None:
    """Makes the recipe of a base and a suffix if there is none.

    Raises:
        Conflict: there are too many of them, or of this owner's.
        LocoError: the server may not write there.
    """
    name = plain_name(base.name, suffix)
    path = adapters_dir / name / RECIPE
    if path.is_file():
        return
    makers = [p.read_text(encoding="utf-8") for p in adapters_dir.glob(f"{PREFIX}-*/{MADE_BY}")]
    for count, most, whose in (
        (makers.count(owner), MOST_OF_OWNER, f" of {owner!r}"),
        (len(makers), MOST, ""),
    ):
        if count >= most:
            raise Conflict(
                f"There are already {most} adapters {PREFIX}-…{whose}.",
                param="suffix",
                hint="Reuse a suffix, name an `adapter`, or delete some of their folders.",
            )
    text = _text(base, name)
    temporary = path.with_name(f".{RECIPE}.{os.getpid()}.{os.urandom(4).hex()}.part")
    with writable(adapters_dir):
        path.parent.mkdir(exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            (path.parent / MADE_BY).write_text(owner, encoding="utf-8")
            os.link(temporary, path)  # of two requests at once the second takes the first one's
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _text(base: BaseModelSpec, name: str) -> str:
    return _TEXT.format(
        name=name, base=base.name, model=f"locollm-{name}", rate=f"{standard_rate(base):.1e}"
    )
