"""Shows rows as training will see them: which tokens there are, and which the loss counts on.

    echo '{"base": {…}, "models_dir": "…", "max_length": 512, "rows": [{…}]}' | python -m loco_trainer.look

One JSON document in, one out (`loco.contracts.looks.Look`, or an `error`). The tokens are those of
`loco_trainer.data.rows`, which trains on them; nothing is downloaded, no weight is loaded.
"""

import io
import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from loco.contracts.errors import DataError, LocoError
from loco.contracts.looks import (
    LARGEST_ANSWER,
    MOST_SHOWN,
    SHOWN,
    TOO_MUCH,
    Look,
    LookedAt,
    LookPiece,
)
from loco.contracts.specs import BaseModelSpec
from loco.stage.program import Emitter
from loco_trainer.bases import find
from loco_trainer.data import rows
from loco_trainer.data.template import Template

#: Bytes of memory and seconds of computing beyond what it took to load the tokenizer.
MEMORY, CPU_SECONDS = 2 * 2**30, 110
_STATM = Path("/proc/self/statm")


def look(asked: dict[str, Any]) -> Look:
    """Tokenizes rows as train does.

    Args:
        asked: see `loco.contracts.looks.asked_of`.

    Raises:
        SourceUnreachable, UnknownBaseModel: the base's tokenizer is not on this machine.
        DataError: it has no chat template.
    """
    from transformers import AutoTokenizer

    spec = BaseModelSpec.model_validate(asked["base"])
    folder = find.resolve(spec, "config", Path(asked["models_dir"]), Emitter(io.StringIO()))
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    template = Template.of(tokenizer, spec.system)
    _bound()
    found = []
    for number, row in enumerate(asked["rows"]):
        found.append(_looked_at(row, template, asked["max_length"], shown=number < SHOWN))
    return Look(base_model=spec.name, rows=tuple(found))


def _looked_at(row: dict[str, Any], template: Template, longest: int, *, shown: bool) -> LookedAt:
    line = row["line"]
    try:
        messages = [rows.message_of(turn) for turn in row["conversations"]]
        encoded = rows.encode(messages, template)
    except DataError as error:
        return LookedAt(line=line, problem=error.message)
    except (KeyError, TypeError):
        return LookedAt(line=line, problem="a turn needs role and content")
    kept = [(whole, *rows.within(whole, longest)) for whole in encoded]
    left = [row for _, row, _, _ in kept if row is not None]
    return LookedAt(
        line=line,
        tokens=max(len(whole.input_ids) for whole in encoded),
        trained=sum(label != rows.IGNORED for row in left for label in row.labels),
        cut=any(inside for _, _, inside, _ in kept),
        dropped=not left,
        pieces=tuple(_pieces(left, template)) if shown else (),
    )


def _pieces(left: list[rows.Row], template: Template) -> Iterator[LookPiece]:
    """Runs of tokens that are trained on, and of others, up to the characters that are shown."""
    room = MOST_SHOWN - 1
    for row in left:
        for trained, run in groupby(
            zip(row.input_ids, row.labels, strict=True), key=lambda at: at[1] != rows.IGNORED
        ):
            text = template.tokenizer.decode([token for token, _ in run])
            if len(text) > room:
                yield LookPiece(text=text[:room] + "…", trained=trained)
                return
            room -= len(text)
            yield LookPiece(text=text, trained=trained)


def _bound() -> None:
    """Limits what rows may take from here on."""
    limits = {resource.RLIMIT_CPU: math.ceil(time.process_time()) + CPU_SECONDS}
    if _STATM.exists():  # elsewhere the time alone is limited
        pages = int(_STATM.read_text(encoding="ascii").split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + MEMORY
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        within = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (within, hard))


def main() -> int:
    """Reads what is asked, writes what was found."""
    try:
        answer = look(json.load(sys.stdin)).model_dump_json()
    except LocoError as error:
        answer = json.dumps({"error": error.body.model_dump()})
    except MemoryError:
        return TOO_MUCH
    if len(answer.encode()) > LARGEST_ANSWER:
        return TOO_MUCH
    sys.stdout.write(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
