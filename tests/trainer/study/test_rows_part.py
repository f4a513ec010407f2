"""The study's trainings on pairs go on from one training on rows: they end as if they had done both."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.train, pytest.mark.study]

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[3] / "tests" / "benchmarks" / "learning"))

from rows_part import ADAPTER, rows_checkpoint  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from loco.contracts.specs import Inputs, PreferenceSpec, TrainSpec  # noqa: E402
from loco_trainer import train  # noqa: E402


def test_going_on_from_the_rows_is_the_whole_training(
    toy_spec: TrainSpec, inputs: Inputs, preference_data: Path, tmp_path: Path, recorder: Any
) -> None:
    files = {**inputs.files, "prepare/preference_data.jsonl": preference_data}
    inputs = inputs.model_copy(update={"files": files})
    rows = toy_spec.model_copy(update={"epochs": 1})
    pairs = PreferenceSpec(learning_rate=5e-3, beta=0.5, epochs=1, batch_size=4)
    recipe = rows.model_copy(update={"preference": pairs})
    whole = train.run(recipe, inputs, tmp_path / "whole", recorder)

    alone = train.run(rows, inputs, tmp_path / "rows", recorder)
    (tmp_path / "rows" / "result.json").write_text(alone.model_dump_json())
    checkpoint = rows_checkpoint(tmp_path / "rows", tmp_path / "begun")
    begun = inputs.model_copy(update={"resume": (checkpoint,)})
    result = train.run(recipe, begun, tmp_path / "pairs", recorder)

    assert result.resumed_from_step == alone.total_steps
    assert [step.loss for step in result.log] == [step.loss for step in whole.log]
    ours, theirs = (
        load_file(tmp_path / name / "checkpoints" / ADAPTER) for name in ("pairs", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
