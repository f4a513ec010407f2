"""Which artifact of a job a path names."""

from datetime import UTC, datetime

import pytest

from loco.contracts.artifacts import Artifact, FrozenFile, input_artifacts
from loco.contracts.errors import NotFound
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.requests import JobRequest
from loco.contracts.stages import Stage
from loco.recipes.resolve import resolve
from loco_api.artifacts import find


def artifact(stage, name):
    return Artifact(
        name=name, stage=stage, path="x", size=1, sha256="0" * 64, media_type="text/plain"
    )


def frozen(digit):
    return FrozenFile(path=f".inputs/{digit * 64}/x", sha256=digit * 64, size=1)


INPUTS = {
    "adapter.yaml": frozen("a"),
    "training_data.jsonl": frozen("b"),
    "/sets/gsm8k.jsonl": frozen("c"),
    "./adapter.yaml": frozen("a"),
    "sets/gsm8k.jsonl": frozen("d"),
}


@pytest.fixture
def job(adapters_dir):
    tasks = [
        (Stage.PREPARE, StageStatus.SUCCEEDED, ["training_data.jsonl", "notes.txt"]),
        (Stage.TRAIN, StageStatus.REUSED, ["checkpoints/adapter_config.json", "notes.txt"]),
        (Stage.EXPORT, StageStatus.RUNNING, ["gguf/half.gguf"]),
    ]
    return Job(
        id="j",
        adapter="math",
        profile="tiny",
        status=JobStatus.RUNNING,
        created_at=datetime.now(UTC),
        spec=resolve(adapters_dir, JobRequest(adapter="math", profile="tiny")).model_copy(
            update={"inputs": INPUTS}
        ),
        stages=tuple(
            Task(
                task_id=f"j-{stage}",
                job_id="j",
                stage=stage,
                status=status,
                artifacts=tuple(artifact(stage, name) for name in names),
            )
            for stage, status, names in tasks
        ),
    )


def test_a_path_is_stage_and_name_or_a_name_of_one_stage(job):
    assert find(job, "train/notes.txt", input_artifacts(INPUTS)).stage is Stage.TRAIN
    assert find(job, "training_data.jsonl", input_artifacts(INPUTS)).stage is Stage.PREPARE
    assert (
        find(job, "checkpoints/adapter_config.json", input_artifacts(INPUTS)).stage is Stage.TRAIN
    )


def test_an_input_is_named_as_the_recipe_names_it(job):
    assert find(job, "inputs/adapter.yaml", input_artifacts(INPUTS)).stage is None
    assert find(job, "adapter.yaml", input_artifacts(INPUTS)).sha256 == "a" * 64
    assert find(job, "training_data.jsonl", input_artifacts(INPUTS)).stage is Stage.PREPARE, (
        "what a stage wrote comes first"
    )
    assert find(job, "inputs/training_data.jsonl", input_artifacts(INPUTS)).sha256 == "b" * 64
    assert find(job, "inputs/sets/gsm8k.jsonl", input_artifacts(INPUTS)).sha256 == "c" * 64
    assert (
        find(job, f"inputs/{'d' * 64}/sets/gsm8k.jsonl", input_artifacts(INPUTS)).sha256 == "d" * 64
    )
    assert len({a.full_name for a in input_artifacts(INPUTS)}) == len(input_artifacts(INPUTS)) == 4


def test_a_name_of_two_stages_is_refused_with_both(job):
    with pytest.raises(NotFound) as caught:
        find(job, "notes.txt", input_artifacts(INPUTS))
    assert caught.value.hint == "Ask for prepare/notes.txt or train/notes.txt."


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "x",
        "prepare",
        "prepare/",
        "/prepare/notes.txt",
        "export/gguf/half.gguf",
        "../prepare/notes.txt",
        "prepare/../train/notes.txt",
        "/etc/passwd",
        "train/notes.txt\x00",
    ],
)
def test_everything_else_is_not_found(job, path):
    with pytest.raises(NotFound):
        find(job, path, input_artifacts(INPUTS))
