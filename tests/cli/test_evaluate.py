"""`loco eval` as a user runs it."""

import time

import pytest
from versions import MODEL, register_result

from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis


def test_eval_measures_the_newest_registered_model(started, client, hands):
    built = client.submit("math", profile="tiny", stages=["prepare", "train", "export", "register"])
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT):
        hands.commit(hands.claim(stage), {})
    hands.commit(hands.claim(Stage.REGISTER), register_result(built.id))
    # of profile tiny, which is not what a recipe takes where nothing is said
    process = started("eval", "math", "--set", "eval.sets.held_out.count=150")
    claim = hands_wait(hands, Stage.EVAL)
    assert claim.job.spec.profile == "tiny"
    assert claim.job.spec.eval.sets["held_out"].count == 150
    assert claim.job.spec.stages == (Stage.EVAL,)
    assert claim.job.spec.from_job == built.id
    score = {"total": 100, "unfinished": 0, "seconds": 9.0}
    comparison = {
        "set": "held_out",
        "base": {"model": "smollm2:135m", "correct": 21, "accuracy": 0.21, **score}
        | {"low": 0.14, "high": 0.3},
        "candidate": {"model": f"locollm-math:{built.id}", "correct": 55, "accuracy": 0.55, **score}
        | {"low": 0.452, "high": 0.644},
        "gain": 0.34,
        "won": 40,
        "lost": 6,
        "p_value": 3.1e-7,
    }
    result = {"base_model": "smollm2:135m", "candidate": "x", "comparisons": [comparison]}
    hands.commit(claim, result)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert "21/100" in stdout
    assert "55 % (45-64)" in stdout
    assert "+34 pts" in stdout
    assert "< 0.0001" in stdout
    assert f"Measuring version 1, {MODEL}:{built.id}." in stderr
    for option, value in (
        ("--profile", "gold"),
        ("--job", "20260101-000000-abcdef"),
        ("--version", "7"),
    ):
        refused = started("eval", "math", option, value)
        _, stderr = refused.communicate(timeout=30)
        assert refused.returncode == 2
        assert f"no registered model for {option} {value}" in stderr
        assert "loco versions math" in stderr


def test_eval_without_a_registered_model_says_how_to_build_one(loco):
    refused = loco("eval", "math")
    assert refused.returncode == 2
    assert "loco submit math --wait" in refused.stderr


def test_eval_sets_fields_of_eval_alone(loco):
    refused = loco("eval", "math", "--set", "train.epochs=5")
    assert refused.returncode == 2
    assert "`loco eval` runs only stage eval" in refused.stderr


def hands_wait(hands, stage: Stage):
    """Claims a stage that a started command is about to submit."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        newest = hands.ledger.jobs(limit=1)[0]
        if newest and newest[0].stage(stage):
            return hands.claim(stage)
        time.sleep(0.05)
    raise AssertionError(f"nobody submitted {stage}")
