"""One process that trains again and again, see gpu_inside.py: a run then takes seconds, not a start."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_ground import Ground
from gpu_stages import StageOutcome, cache_environment

from loco.contracts.specs import TrainSpec
from loco.contracts.stages import Stage


class Within:
    """Runs of stage train that share their imports; each loads the model anew."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._child: subprocess.Popen[str] | None = None

    def train(
        self,
        spec: TrainSpec,
        name: str,
        folder: str,
        files: dict[str, Path],
        *,
        cap_gib: float | None = None,
        told: bool = True,
    ) -> StageOutcome:
        """Runs stage train; the arguments are those of `gpu_stages.run_stage`."""
        out = self._ground.work / "runs" / folder
        out.mkdir(parents=True)
        models = self._ground.work / "models"
        document = self._ground.document(Stage.TRAIN, spec, models=models, files=files, results={})
        (out / "spec.json").write_text(document)
        order = {
            "spec": str(out / "spec.json"),
            "out": str(out),
            "cap_bytes": None if cap_gib is None else int(cap_gib * 2**30),
            "told": told,
        }
        started = time.monotonic()
        answer = self._ask(order, models)
        seconds = round(time.monotonic() - started, 3)
        said = out / "events.jsonl"
        lines = said.read_text().splitlines() if said.exists() else []
        events = [(0.0, json.loads(line)) for line in lines]
        if "error" in answer:
            code, _, message = answer["error"].partition(": ")
            events.append((0.0, {"type": "error", "error": {"code": code, "message": message}}))
            return StageOutcome(name, 1, seconds, events, out)
        result = json.loads((out / "result.json").read_text())
        return StageOutcome(name, 0, seconds, events, out, result | {"stage": Stage.TRAIN.value})

    def close(self) -> None:
        """Ends the process, which gives the GPU's memory back."""
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            self._child.wait()
            self._child = None

    def _ask(self, order: dict[str, Any], models: Path) -> dict[str, Any]:
        if self._child is None:
            log = (self._ground.work / "inside.log").open("a")
            self._child = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("gpu_inside.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._ground.environment
                | cache_environment(models)
                | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
                cwd=self._ground.work,
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            self._child = None
            return {"error": f"crashed: exit code {code}, see inside.log"}
        answer: dict[str, Any] = json.loads(line)
        return answer
