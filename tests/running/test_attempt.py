"""What an attempt's spec.json tells the stage program about earlier runs."""

from collections.abc import Callable
from uuid import uuid4

import pytest

from loco.contracts.jobs import Failure
from loco.contracts.plans import Plan, PlanAttempt
from loco.contracts.program_events import Progress
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.ledger import Ledger
from loco.running.attempt import stage_run
from loco.settings import Settings

pytestmark = pytest.mark.redis

PLAN = Plan(
    engine="peft",
    precision="bf16",
    micro_batch=8,
    accumulation=1,
    gradient_checkpointing=False,
    padding_free=True,
    max_length=87,
    memory_gb=2.9,
    device="NVIDIA H200",
    free_gb=139.0,
    step_seconds=2.7,
    train_seconds=70,
)
RAN_OUT = PlanAttempt(
    plan=PLAN, first_step=1, last_step=0, peak_memory_gb=139.0, outcome="out_of_memory"
)
FINISHED = PlanAttempt(
    plan=PLAN.model_copy(update={"micro_batch": 4, "accumulation": 2}),
    first_step=1,
    last_step=20,
    peak_memory_gb=3.1,
    outcome="finished",
)
RESULT = {
    "seconds": 150.0,
    "files": {},
    "engine": "peft",
    "device": "NVIDIA H200",
    "dtype": "bfloat16",
    "base_model": "smollm2-135m-instruct",
    "examples": 160,
    "tokens": 10_289,
    "trainable_parameters": 1000,
    "total_steps": 20,
    "first_loss": 1.0,
    "last_loss": 0.5,
    "train_seconds": 100.0,
    "tokens_per_second": 100.0,
    "peak_gpu_memory_gb": 3.1,
    "log": [],
    "plan": FINISHED.plan.model_dump(),
    "attempts": [RAN_OUT.model_dump(), FINISHED.model_dump()],
    "lengths": {
        "rows": 160,
        "tokens": 10_289,
        "answer_tokens": 3_186,
        "p50": 64,
        "p95": 80,
        "longest": 87,
    },
    "start_seconds": 40.0,
    "step_seconds": 5.0,
}


def test_train_is_told_the_plans_that_runs_of_its_base_tried_newest_first(
    ledger: Ledger, settings: Settings, spec: Callable[..., JobSpec]
) -> None:
    def claimed(stage: Stage):
        claim = ledger.claim(stage.queue, worker_id="w1", nonce=f"{stage}-{len(ledger.jobs()[0])}")
        assert claim is not None
        assert claim.stage is stage
        return claim

    def commit(claim, result) -> None:
        ledger.commit(
            claim.task_id, claim.token, result=result, artifacts=(), fingerprint=claim.task_id
        )

    for seed in range(2):
        ledger.submit(spec(stages=("prepare", "train"), seed=seed))
        prepare = claimed(Stage.PREPARE)
        assert stage_run(ledger, settings, prepare).inputs.tried == ()
        commit(prepare, {"seconds": 1.0, "files": {}})
        train = claimed(Stage.TRAIN)
        tried = stage_run(ledger, settings, train).inputs.tried
        commit(train, RESULT)
    assert tried == (FINISHED, RAN_OUT)


def test_what_a_run_tried_in_vain_is_told_to_the_next(
    ledger: Ledger, settings: Settings, spec: Callable[..., JobSpec]
) -> None:
    def begin():
        ledger.submit(spec(stages=("prepare", "train")))
        for stage in (Stage.PREPARE, Stage.TRAIN):
            claim = ledger.claim(stage.queue, worker_id="w1", nonce=uuid4().hex)
            assert claim is not None
            if stage is Stage.PREPARE:
                result = {"seconds": 1.0, "files": {}}
                token = claim.token
                ledger.commit(
                    claim.task_id, token, result=result, artifacts=(), fingerprint=uuid4().hex
                )
        return claim

    first = begin()
    assert stage_run(ledger, settings, first).inputs.tried == ()
    ledger.progress(first.task_id, first.token, Progress(tried=(RAN_OUT,)))
    failure = Failure(
        code="out_of_memory", message="full", stage=Stage.TRAIN, attempt=1, user_fault=False
    )
    ledger.fail(first.task_id, first.token, failure, retryable=False)
    assert stage_run(ledger, settings, begin()).inputs.tried == (RAN_OUT,)
