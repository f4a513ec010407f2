"""Asks the training environment how it will see rows. Without one, or a tokenizer, it says so."""

import json
import os
import subprocess

from pydantic import ValidationError

from loco.contracts.errors import LocoError, Unseen, from_payload
from loco.contracts.looks import TOO_MUCH, Look, LookRequest, asked_of
from loco.contracts.specs import BaseModelSpec
from loco.recipes.catalog import base_model
from loco.settings import Settings

PROGRAM = "loco_trainer.look"
#: Seconds: to load transformers, unpack a base once, and tokenize some hundred rows.
SECONDS = 120.0
_KEPT = ("PATH", "PYTHONPATH", "LANG", "TZ", "LD_LIBRARY_PATH", "HOME", "HF_HOME", "HF_HUB_CACHE")


def look(settings: Settings, request: LookRequest) -> Look:
    """Rows as training will see them; takes seconds, not for an event loop.

    Raises:
        UnknownBaseModel: the catalog has none of that name.
        Unseen: there is no training environment or tokenizer here, or it took too much.
    """
    return look_at(settings, base_model(settings.adapters_dir, request.base_model), request)


def look_at(settings: Settings, base: BaseModelSpec, request: LookRequest) -> Look:
    """The same for a base of whichever catalog.

    Raises:
        Unseen: there is no training environment or tokenizer here, or it took too much.
    """
    if not settings.train_python.is_file():
        raise Unseen(
            f"There is no training environment here ({settings.train_python}), so it is not "
            "known how the model will see the rows.",
            hint="Build one with `make setup`, or use the server that trains.",
        )
    asked = asked_of(base.model_dump(mode="json"), str(settings.models_dir), request)
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    kept |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    kept |= {"CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(
            [settings.train_python, "-P", "-m", PROGRAM],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=SECONDS,
            env=kept,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unseen(
            f"The training environment took longer than {SECONDS:.0f} s to read the rows.",
            hint="Try again when the machine is less busy.",
        ) from error
    if ended.returncode == TOO_MUCH or ended.returncode < 0:  # a signal: memory or time
        raise Unseen(
            "The rows take too much memory or time to read.", hint="Send fewer or shorter rows."
        )
    try:
        answer = json.loads(ended.stdout)
    except ValueError as error:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise LocoError(f"{PROGRAM} failed: {' '.join(last):.300}") from error
    if "error" in answer:
        told = from_payload({"error": answer["error"]}, fallback="no tokenizer")
        raise Unseen(
            f"The tokenizer of {base.name} is not available: {told.message}", hint=told.hint
        )
    try:
        return Look.model_validate(answer)
    except ValidationError as error:
        raise LocoError(f"{PROGRAM} gave an unexpected answer: {error}") from error
