"""Each CPU stage run by hand: `python -m loco_worker.STAGE --spec F --out DIR`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.program_events import parse_event
from loco.contracts.results import EvalResult, PrepareResult, RegisterResult
from loco.contracts.specs import Inputs, JobSpec, StageRun
from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis


def by_hand(
    folder: Path, stage: Stage, spec: dict[str, Any], inputs: Inputs
) -> tuple[int, list[Any], Path]:
    """Exit code, events and output folder of a stage program."""
    out = folder / stage
    file = folder / f"{stage}.json"
    file.write_text(StageRun(stage=stage, spec=spec, inputs=inputs).model_dump_json())
    ended = subprocess.run(
        [sys.executable, "-m", stage.program, "--spec", str(file), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return ended.returncode, [parse_event.validate_json(e) for e in ended.stdout.splitlines()], out


@pytest.mark.slow
def test_prepare_register_and_eval_follow_each_other(
    tiny: JobSpec, gguf: Path, inputs_of: Callable[..., Inputs], tmp_path: Path
) -> None:
    spec = tiny.prepare.model_dump(mode="json")
    spec["eval_sets"]["held_out"]["count"] = 2
    code, events, out = by_hand(tmp_path, Stage.PREPARE, spec, inputs_of())
    assert code == 0, events
    prepared = PrepareResult.model_validate_json((out / "result.json").read_bytes())
    assert prepared.kept == 160
    assert len((out / "training_data.jsonl").read_text().splitlines()) == 160
    assert prepared.seconds > 0
    assert (out / "environment.json").is_file()

    files = {
        "prepare/training_data.jsonl": out / "training_data.jsonl",
        "prepare/eval_sets/held_out.jsonl": out / "eval_sets/held_out.jsonl",
        "export/gguf/unsloth.Q4_K_M.gguf": gguf,
    }
    results: dict[Stage, dict[str, Any]] = {Stage.PREPARE: prepared.model_dump()}
    spec = tiny.register_.model_dump(mode="json")
    inputs = inputs_of(files=files, results=results)
    code, events, out = by_hand(tmp_path, Stage.REGISTER, spec, inputs)
    assert code == 0, events
    registered = RegisterResult.model_validate_json((out / "result.json").read_bytes())
    assert registered.candidate.startswith("locollm-math-tiny:")

    results[Stage.REGISTER] = registered.model_dump()
    spec = {**tiny.eval.model_dump(mode="json"), "num_predict": 16}
    spec["sets"]["held_out"]["count"] = 2
    inputs = inputs_of(files=files, results=results)
    code, events, out = by_hand(tmp_path, Stage.EVAL, spec, inputs)
    assert code == 0, events
    measured = EvalResult.model_validate_json((out / "result.json").read_bytes())
    assert [(c.set, c.base.total) for c in measured.comparisons] == [
        ("benchmark", 2),
        ("held_out", 2),
    ]
    assert len((out / "eval.jsonl").read_text().splitlines()) == 8
    assert len((out / "problems.jsonl").read_text().splitlines()) == 4
    assert [c["set"] for c in json.loads((out / "summary.json").read_text())] == [
        "benchmark",
        "held_out",
    ]
    assert measured.contaminated == {"benchmark": 0, "held_out": 0}
    assert measured.left_out == {"promoted": "no other version serves yet"}
    assert "# How good is locollm-math-tiny:" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("stage", "code"),
    [
        (Stage.PREPARE, "bad_data"),
        (Stage.REGISTER, "registration_failed"),
        (Stage.EVAL, "registration_failed"),
    ],
)
def test_a_failure_is_an_event_and_exit_code_1(
    tiny: JobSpec,
    inputs_of: Callable[..., Inputs],
    tmp_path: Path,
    stage: Stage,
    code: str,
) -> None:
    spec = tiny.part(stage).model_dump(mode="json")
    if stage is Stage.PREPARE:
        spec["source"] = {"kind": "jsonl", "path": "none.jsonl"}
    exit_code, events, out = by_hand(tmp_path, stage, spec, inputs_of())
    assert exit_code == 1
    assert events[-1].type == "error"
    assert events[-1].error.code == code
    assert events[-1].error.hint
    assert not (out / "result.json").exists()
