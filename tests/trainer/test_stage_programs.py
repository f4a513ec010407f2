"""The stage programs by hand: a real fine-tuning from rows to a GGUF, a stop, a kill."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.files import sha256_of
from loco.contracts.program_events import parse_event
from loco.contracts.results import ExportResult, TrainResult
from loco.contracts.specs import BaseModelSpec, ExportSpec, Inputs, PreferenceSpec, TrainSpec
from loco.contracts.stages import Stage

SpecFile = Callable[..., Path]


@contextmanager
def program(stage: Stage, spec: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs `python -m STAGE_PROGRAM --spec SPEC --out OUT`."""
    command = [sys.executable, "-m", stage.program, "--spec", str(spec), "--out", str(out)]
    log = (spec.parent / f"{out.name}.log").open("w")
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def finish(stage: Stage, spec: Path, out: Path) -> dict[str, Any]:
    with program(stage, spec, out) as child:
        assert child.stdout is not None
        for line in child.stdout:
            parse_event.validate_json(line)  # nothing but events leaves on standard output
        assert child.wait() == 0, (spec.parent / f"{out.name}.log").read_text()[-3000:]
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


@pytest.mark.slow
def test_smollm2_learns_rows_and_answers_from_its_gguf(
    smollm2: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    train = TrainSpec.model_validate(
        {
            "base_model": smollm2,
            "load_in_4bit": False,
            "lora": {"target_modules": "all-linear"},
            "learning_rate": 1e-3,
            "epochs": 2,
            "batch_size": 8,
            "gradient_accumulation": 1,
            "max_length": 128,
        }
    )
    trained = TrainResult.model_validate(
        finish(Stage.TRAIN, spec_file(Stage.TRAIN, train), tmp_path / "train")
    )
    assert trained.total_steps == 6
    assert trained.last_loss < 0.5 * trained.first_loss
    assert trained.seconds > trained.train_seconds > 0
    assert (tmp_path / "train" / "environment.json").is_file()

    export = ExportSpec(base_model=smollm2, model_name="locollm-math")
    files = {f"train/{n}": tmp_path / "train" / path for n, path in trained.files.items()}
    exported = ExportResult.model_validate(
        finish(Stage.EXPORT, spec_file(Stage.EXPORT, export, files=files), tmp_path / "export")
    )
    assert exported.quantization == "Q4_K_M"
    assert exported.gguf == "gguf/unsloth.Q4_K_M.gguf"
    assert 100e6 < exported.size < 110e6
    assert exported.tensors == 272
    assert exported.tensor_types["Q4_K"] > 0
    assert "The answer is" in exported.sample_answer  # learnt in six steps


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_ended_goes_on_from_its_checkpoint(
    number: signal.Signals, toy_spec: TrainSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    spec = toy_spec.model_copy(update={"epochs": 100})  # 600 steps, a checkpoint every 5 s
    first = spec_file(Stage.TRAIN, spec)
    written: list[Path] = []
    with program(Stage.TRAIN, first, tmp_path / "a1") as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = parse_event.validate_json(line)
            if event.type == "checkpoint":
                written.insert(0, Path(event.path))
                os.kill(child.pid, number)
        code = child.wait()
    assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not (tmp_path / "a1" / "result.json").exists()
    assert written

    again = spec_file(Stage.TRAIN, spec, resume=tuple(written))
    result = TrainResult.model_validate(finish(Stage.TRAIN, again, tmp_path / "a2"))
    assert result.resumed_from_step is not None
    assert 1 <= result.resumed_from_step < 600
    assert [s.step for s in result.log] == list(range(1, 601))


@pytest.mark.slow
def test_smollm2_goes_on_with_pairs_and_answers_from_its_gguf(
    smollm2: BaseModelSpec,
    spec_file: SpecFile,
    inputs: Inputs,
    preference_data: Path,
    tmp_path: Path,
) -> None:
    train = TrainSpec.model_validate(
        {
            "base_model": smollm2,
            "load_in_4bit": False,
            "lora": {"target_modules": "all-linear"},
            "learning_rate": 1e-3,
            "epochs": 1,
            "batch_size": 8,
            "gradient_accumulation": 1,
            "max_length": 128,
            "preference": {"learning_rate": 2e-4, "batch_size": 4, "epochs": 2},
        }
    )
    files = {**inputs.files, "prepare/preference_data.jsonl": preference_data}
    trained = TrainResult.model_validate(
        finish(Stage.TRAIN, spec_file(Stage.TRAIN, train, files=files), tmp_path / "train")
    )
    pairs = trained.preference
    assert pairs is not None
    assert (trained.total_steps, pairs.steps, pairs.pairs) == (9, 6, 12)
    assert pairs.last_accuracy == 1 > pairs.first_accuracy
    assert pairs.margin > 1
    assert pairs.last_loss < pairs.first_loss

    export = ExportSpec(base_model=smollm2, model_name="locollm-math")
    files = {f"train/{n}": tmp_path / "train" / path for n, path in trained.files.items()}
    exported = ExportResult.model_validate(
        finish(Stage.EXPORT, spec_file(Stage.EXPORT, export, files=files), tmp_path / "export")
    )
    assert exported.tensors == 272
    assert exported.sample_answer


@pytest.mark.slow
def test_a_run_that_was_killed_on_pairs_goes_on_from_its_checkpoint(
    toy_spec: TrainSpec, spec_file: SpecFile, inputs: Inputs, preference_data: Path, tmp_path: Path
) -> None:
    given = PreferenceSpec(learning_rate=1e-4, batch_size=4, epochs=7)  # 21 steps after six
    spec = toy_spec.model_copy(update={"epochs": 1, "preference": given})
    files = {**inputs.files, "prepare/preference_data.jsonl": preference_data}
    written: list[Path] = []
    with program(Stage.TRAIN, spec_file(Stage.TRAIN, spec, files=files), tmp_path / "a1") as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = parse_event.validate_json(line)
            if event.type == "checkpoint":
                written.insert(0, Path(event.path))
            elif event.type == "progress" and (event.progress.step or 0) > 7:
                child.kill()
        assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "a1" / "result.json").exists()
    assert "checkpoint-6" in [path.name for path in written]  # it follows the reference

    again = spec_file(Stage.TRAIN, spec, files=files, resume=tuple(written))
    result = TrainResult.model_validate(finish(Stage.TRAIN, again, tmp_path / "a2"))
    # on a slow machine one more may have been due
    assert f"checkpoint-{result.resumed_from_step}" == written[0].name
    assert [s.step for s in result.log] == list(range(1, 28))
    assert result.preference is not None
    assert result.preference.reference_seconds == 0


@pytest.mark.slow
def test_training_and_export_on_a_cpu_give_the_same_weights_twice(
    smollm2: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    train = TrainSpec.model_validate(
        {
            "base_model": smollm2,
            "load_in_4bit": False,
            "lora": {"target_modules": "all-linear", "dropout": 0.05},
            "learning_rate": 1e-3,
            "epochs": 1,
            "batch_size": 8,
            "gradient_accumulation": 1,
            "max_length": 128,
        }
    )
    export = ExportSpec(base_model=smollm2, model_name="locollm-math")
    digests = []
    for job in ("20261127-000000-aaaaaa", "20261127-111111-bbbbbb"):
        out = tmp_path / job
        trained = finish(Stage.TRAIN, spec_file(Stage.TRAIN, train, job_id=job), out / "train")
        files = {f"train/{n}": out / "train" / path for n, path in trained["files"].items()}
        exported = finish(
            Stage.EXPORT, spec_file(Stage.EXPORT, export, files=files, job_id=job), out / "export"
        )
        digests.append(
            {
                path.relative_to(out).as_posix(): sha256_of(path)
                for path in out.rglob("*.safetensors")
                if "checkpoint-" not in path.as_posix()
            }
            # the head of the GGUF names the job
            | {"weights of the GGUF": exported["weights_sha256"]}
        )
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]
