"""Runs stage train again and again in one process: imports are over, a run takes its steps' time.

Started by `gpu_bench.Bench.train`. Reads a line `{"spec": PATH, "out": DIR, "cap_bytes": N, "told":
BOOL}` for each run from standard input and answers with one: `{"error": …}` or `{}`; the result is in
`DIR/result.json`, as the stage program would have written it.
"""

import gc
import importlib
import importlib.util
import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from loco.contracts.errors import LocoError
from loco.contracts.specs import StageRun, TrainSpec
from loco.stage.program import Emitter
from loco_trainer import train


def main() -> None:
    """Serves runs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    if importlib.util.find_spec("bitsandbytes"):  # a run in 16 bits would hide it from a later one
        importlib.import_module("bitsandbytes")
    honest = torch.cuda.get_per_process_memory_fraction
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if torch.cuda.is_available():
                _cap(order, honest)
            _run(Path(order["spec"]), Path(order["out"]))
        except LocoError as error:
            traceback.print_exc()
            answer = {"error": f"{error.code}: {error.message}"}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        torch.cuda.empty_cache()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _run(spec: Path, out: Path) -> None:
    document = StageRun.model_validate_json(spec.read_bytes())
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    events = io.StringIO()
    try:
        result = train.run(
            TrainSpec.model_validate(document.spec), document.inputs, out, Emitter(events)
        )
    finally:
        (out / "events.jsonl").write_text(events.getvalue())
    (out / "result.json").write_text(result.model_dump_json())


def _cap(order: dict[str, Any], honest: Any) -> None:
    """Makes the card as small as asked; a run that is not told believes in the whole of it."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((order["cap_bytes"] or total) / total)
    torch.cuda.get_per_process_memory_fraction = honest if order["told"] else _whole


def _whole(_device: Any = None) -> float:
    return 1.0


if __name__ == "__main__":
    main()
