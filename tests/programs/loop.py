"""A stage program of steps, for tests of the runner: sleeps, checkpoints, resumes, stops.

    python tests/programs/loop.py STAGE --spec FILE --out DIR

The recipe's `train.max_steps` is the number of steps. LOOP_STEP_SECONDS paces it and LOOP_FAULT
makes it misbehave. With LOOP_VERDICT, register and eval leave what such stages leave, and eval's gate
says that verdict.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from loco.contracts.errors import OllamaUnavailable, OutOfMemory
from loco.contracts.evaluation import Verdict
from loco.contracts.files import write_text
from loco.contracts.results import EvalResult, RegisterResult
from loco.contracts.specs import Inputs, StageResult, TrainSpec
from loco.contracts.stages import Stage
from loco.stage.program import Emitter, main

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from versions import MODEL, eval_result, register_result

STEPS = 10


def run(spec: object, inputs: Inputs, out_dir: Path, emit: Emitter) -> StageResult:
    pace = float(os.environ.get("LOOP_STEP_SECONDS", "0.05"))
    steps = spec.max_steps if isinstance(spec, TrainSpec) and spec.max_steps else STEPS
    write_text(out_dir / "pid", str(os.getpid()))
    done = [int((folder / "step").read_text()) for folder in inputs.resume]
    first = max(done, default=0)
    emit.log(f"from step {first}")
    _misbehave(os.environ.get("LOOP_FAULT", ""), emit, resumed=bool(done))
    for step in range(first + 1, steps + 1):
        time.sleep(pace)
        emit.progress(last=step == steps, step=step, total_steps=steps, percent=100 * step / steps)
        if step % 2 == 0 or emit.stopping:
            folder = out_dir / f"checkpoint-{step}"
            folder.mkdir(exist_ok=True)
            write_text(folder / "step", str(step))
            emit.checkpoint(folder, step=step)
        emit.check_stop()
    files = _write(out_dir, first, steps)
    if verdict := os.environ.get("LOOP_VERDICT"):
        if STAGE == "register":
            return RegisterResult.model_validate(register_result(inputs.job_id))
        if STAGE == "eval":
            compared = inputs.promoted.version if inputs.promoted else None
            candidate = f"{MODEL}:{inputs.job_id}"
            return EvalResult.model_validate(
                eval_result(candidate, Verdict(verdict), compared=compared)
            )
    return StageResult(seconds=0, files=files)


def _write(out_dir: Path, first: int, steps: int) -> dict[str, str]:
    names = {
        "prepare": ["training_data.jsonl"],
        "train": ["checkpoints/adapter_model.safetensors", "checkpoints/adapter_config.json"],
        "export": ["gguf/unsloth.Q4_K_M.gguf", "Modelfile"],
    }.get(STAGE, [])
    if os.environ.get("LOOP_FAULT") == "escape":
        return {"passwd": "../../../../../../../../../../etc/passwd"}
    for name in names:
        write_text(out_dir / name, f"{name} of {STAGE}, {steps} steps\n")
    write_text(out_dir / "resumed.json", json.dumps({"from": first}))
    return {name: name for name in names}


def _misbehave(fault: str, emit: Emitter, *, resumed: bool) -> None:
    match fault:
        case "memory":
            raise OutOfMemory("The GPU is full.", hint="Take a smaller batch.")
        case "passing":
            raise OllamaUnavailable("No Ollama.")
        case "killed":
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        case "deaf":
            emit.request_stop = lambda: None  # type: ignore[method-assign]
        case "grandchild":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        case "babble":
            os.write(_event_fd(emit), b'no event\n{"type": "progress"}\n\xff\xfe\n')


def _event_fd(emit: Emitter) -> int:
    return emit._stream.fileno()


STAGE = sys.argv[1]

if __name__ == "__main__":
    sys.exit(main(Stage(STAGE), run, sys.argv[2:]))
