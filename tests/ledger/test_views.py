"""Stored records are read leniently, requests are not; equal requests have equal digests."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from loco.contracts.errors import UnreadableRecord
from loco.contracts.jobs import JobStatus, StageStatus
from loco.contracts.requests import JobRequest
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.views import job_view, parse_event, readable, task_view
from loco.queue.submission import request_digest

TASK = {
    "task_id": "j-train",
    "job_id": "j",
    "stage": "train",
    "status": "running",
    "attempt": "2",
    "crashes": "1",
}

JOB = {
    "id": "j",
    "adapter": "math",
    "profile": "tiny",
    "status": "running",
    "priority": "-3",
    "metadata": "{}",
    "cancel_requested": "0",
    "created_at": "1795359874974",
}


def test_fields_of_another_release_are_left_out(spec: Callable[..., JobSpec]) -> None:
    document = json.loads(spec().model_dump_json(by_alias=True))
    document["from_the_future"] = 1
    document["train"]["optimizer"] = "new"
    fields = {**JOB, "spec": json.dumps(document), "new_field": "x"}
    progress = json.dumps({"step": 3, "watts": 200})
    job = job_view(fields, [{**TASK, "progress": progress, "new": "x"}])
    assert job.spec == spec()
    assert (job.status, job.priority) == (JobStatus.RUNNING, -3)
    assert job.created_at == datetime(2026, 11, 22, 15, 4, 34, 974000, UTC)
    assert job.stages[0].progress is not None
    assert job.stages[0].progress.step == 3
    with pytest.raises(ValidationError):
        JobSpec.model_validate(document)


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("eval", "num_predict", 200_000),
        ("train", "gradient_accumulation", 8192),
        ("train", "system", 'two\nlines "quoted"'),
    ],
)
def test_what_an_earlier_release_took_beyond_todays_limits_is_told_as_that(
    spec: Callable[..., JobSpec], stage: str, field: str, value: object
) -> None:
    """Before: somebody else was said to have written into the ledger."""
    document = json.loads(spec().model_dump_json(by_alias=True))
    place = document[stage]["base_model"] if field == "system" else document[stage]
    assert field in place
    place[field] = value
    with pytest.raises(UnreadableRecord, match=field) as caught, readable("job", "j"):
        job_view({**JOB, "spec": json.dumps(document)}, [])
    assert caught.value.hint is not None
    assert "earlier release" in caught.value.hint
    assert "Submit it again" in caught.value.hint


def test_what_no_release_wrote_is_told_as_that(spec: Callable[..., JobSpec]) -> None:
    document = json.loads(spec().model_dump_json(by_alias=True))
    del document["adapter"]
    with pytest.raises(UnreadableRecord) as caught, readable("job", "j"):
        job_view({**JOB, "spec": json.dumps(document)}, [])
    assert caught.value.hint is not None
    assert "earlier release" not in caught.value.hint


def test_what_an_earlier_release_took_and_and_this_one_refuses_is_still_shown(
    spec: Callable[..., JobSpec],
) -> None:
    """One old job must not keep the list of jobs from being shown."""
    document = json.loads(spec().model_dump_json(by_alias=True))
    document["train"]["base_model"]["system"] = ""  # the catalog refuses it now
    job = job_view({**JOB, "spec": json.dumps(document)}, [])
    assert job.spec.train.base_model.system == ""


def test_a_task_that_never_ran_has_nothing_to_show() -> None:
    task = task_view(TASK)
    assert (task.status, task.attempt, task.crashes) == (StageStatus.RUNNING, 2, 1)
    assert (task.result, task.error, task.progress, task.started_at) == (None,) * 4
    assert (task.artifacts, task.checkpoints) == ((), ())


def test_events_of_the_job_have_no_stage() -> None:
    fields = {"type": "job.queued", "at": "1000", "stage": "", "data": "{}"}
    event = parse_event("5-1", fields)
    assert (event.id, event.stage, event.data) == ("5-1", None, {})
    assert event.at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert parse_event("5-2", {**fields, "stage": "eval"}).stage is Stage.EVAL


def test_equal_requests_have_equal_digests() -> None:
    def digest(**fields: object) -> str:
        return request_digest(JobRequest.model_validate({"adapter": "math", **fields}))

    train = {"epochs": 3, "lora": {"r": 4, "alpha": 8}}
    turned = {"lora": {"alpha": 8, "r": 4}, "epochs": 3}
    assert digest(train=train) == digest(train=turned)
    assert digest() == digest(profile="default", stages=None)
    different = [digest(), digest(seed=0), digest(train=train), digest(register=train)]
    assert len(set(different)) == len(different)
