"""Runs the product's stage programs as a worker does, and reads from outside when what happened."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_ground import Ground

from loco.contracts.specs import ExportSpec, PrepareSpec, TrainSpec
from loco.contracts.stages import Stage

Spec = PrepareSpec | TrainSpec | ExportSpec

#: Makes the card look as large as the cap: the allocator stops there, and says so when asked.
_CAP = """
from pathlib import Path
from loco_trainer.engines import choose
choose.keep_kernels(Path({models!r}))  # as stage train: it also settles how memory is allocated
import torch
torch.cuda.set_per_process_memory_fraction({cap} / torch.cuda.get_device_properties(0).total_memory)
"""
#: Leaves the planner in the belief that the whole card is there.
_LIE = "torch.cuda.get_per_process_memory_fraction = lambda device=None: 1.0\n"
_RUN = "import runpy\nrunpy.run_module({program!r}, run_name='__main__', alter_sys=True)\n"


@dataclass(frozen=True)
class StageOutcome:
    """How a stage program went, seen from outside."""

    name: str
    code: int
    #: From its start to its end, in seconds, Python's own start included.
    seconds: float
    #: Seconds since the start and the event said then.
    events: list[tuple[float, dict[str, Any]]]
    out: Path
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.code == 0

    @property
    def error(self) -> str:
        """Why it failed, in its own words."""
        for _, event in reversed(self.events):
            if event["type"] == "error":
                return f"{event['error']['code']}: {event['error']['message']}"
        if self.code == -signal.SIGKILL:
            return f"killed after {self.seconds:.0f} s, when the time for it was up"
        log = self.out.with_name(f"{self.out.name}.log")
        last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        return f"exit code {self.code}; {' '.join(last)[:300]}"

    def at_step(self, step: int) -> float | None:
        """Seconds from the start until the progress event of an optimizer step arrived."""
        for when, event in self.events:
            if event["type"] == "progress" and event["progress"].get("step") == step:
                return when
        return None

    def timeline(self) -> list[tuple[float, str]]:
        """When each new message was said, until the first optimizer step."""
        said: list[tuple[float, str]] = []
        for when, event in self.events:
            body = event.get("progress", event)
            message = body.get("message")
            if body.get("step"):
                return [*said, (when, "first optimizer step done")]
            if message and (not said or said[-1][1] != message):
                said.append((when, message))
        return said

    @property
    def files(self) -> dict[str, Path]:
        """Its artifacts, as inputs of later stages."""
        stage = self.result["stage"]
        return {f"{stage}/{name}": self.out / path for name, path in self.result["files"].items()}


def run_stage(
    ground: Ground,
    stage: Stage,
    spec: Spec,
    name: str,
    folder: str,
    *,
    after: tuple[StageOutcome, ...] = (),
    files: dict[str, Path] | None = None,
    models: str = "models",
    cap_gib: float | None = None,
    told: bool = True,
    limit: float = 600,
) -> StageOutcome:
    """Runs one stage program to its end.

    Args:
        ground: model, rows and folders.
        stage: which program.
        spec: its spec.
        name: of the run, for the tables.
        folder: below the runs, where it writes.
        after: runs of earlier stages, whose artifacts and results it may read.
        files: artifacts given otherwise, `STAGE/NAME` to path.
        models: name of the models folder, which also holds what is cached between jobs.
        cap_gib: GPU memory the process may reserve, in GiB.
        told: whether the program can see the cap.
        limit: seconds after which it is killed.
    """
    out = ground.work / "runs" / folder
    out.mkdir(parents=True)
    inputs = {key: path for run in after for key, path in run.files.items()} | (files or {})
    results = {
        Stage(run.result["stage"]): {k: v for k, v in run.result.items() if k != "stage"}
        for run in after
    }
    cache = ground.work / models
    document = ground.document(stage, spec, models=cache, files=inputs, results=results)
    (out / "spec.json").write_text(document)
    module = ["-m", stage.program]
    if cap_gib is not None:
        code = _CAP.format(cap=int(cap_gib * 2**30), models=str(cache)) + ("" if told else _LIE)
        module = ["-c", code + _RUN.format(program=stage.program)]
    command = [sys.executable, *module, "--spec", str(out / "spec.json"), "--out", str(out)]
    environment = ground.environment | cache_environment(cache)
    started = time.monotonic()
    with (
        out.with_name(f"{out.name}.log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=out
        ) as child,
    ):
        timer = threading.Timer(limit, lambda: os.kill(child.pid, signal.SIGKILL))
        timer.start()
        assert child.stdout is not None
        events = [(round(time.monotonic() - started, 3), json.loads(line)) for line in child.stdout]
        code = child.wait()
        timer.cancel()
    seconds = round(time.monotonic() - started, 3)
    result = json.loads((out / "result.json").read_text()) if code == 0 else {}
    return StageOutcome(name, code, seconds, events, out, result | {"stage": stage.value})


def cache_environment(folder: Path) -> dict[str, str]:
    """Sends the compilers' own default caches below a folder, so that a fresh folder is a cold start.

    What a program chooses by itself (its models folder) stands above these.
    """
    scratch = folder / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    return {
        "TRITON_HOME": str(folder),
        "CUDA_CACHE_PATH": str(folder / "nv"),
        "TMPDIR": str(scratch),  # torch.compile's default cache lies below it
    }
