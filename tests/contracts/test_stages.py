"""One word for a stage, everywhere."""

from importlib.util import find_spec

import pytest

from loco.contracts.stages import STAGE_VERSIONS, Queue, Stage


def test_stages_run_in_this_order() -> None:
    assert [str(s) for s in Stage] == ["prepare", "train", "export", "register", "eval"]


def test_predecessors_are_the_stages_before() -> None:
    assert Stage.PREPARE.predecessors == ()
    assert Stage.EXPORT.predecessors == (Stage.PREPARE, Stage.TRAIN)


def test_training_and_export_go_to_the_gpu() -> None:
    assert [s for s in Stage if s.queue is Queue.GPU] == [Stage.TRAIN, Stage.EXPORT]


def test_a_model_is_registered_and_measured_by_every_job() -> None:
    assert [s for s in Stage if not s.reusable] == [Stage.REGISTER, Stage.EVAL]


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_has_a_program_of_its_name_and_a_version(stage: Stage) -> None:
    assert stage.program.endswith(f".{stage}")
    assert find_spec(stage.program) is not None
    assert STAGE_VERSIONS[stage] >= 1
