"""Sweeps on the command line: what --set means there, the table at any width, lines on a pipe."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from loco.cli.overrides import parse_grid
from loco.cli.sweep_view import Lines, render
from loco.contracts.errors import ErrorBody, InvalidRequest
from loco.contracts.stages import Stage
from loco.contracts.sweeps import Sweep
from loco.queue.sweeps import advance

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ID = "sweep-20261122-120000-4f9a2c"


@pytest.mark.parametrize(
    ("assignment", "values"),
    [
        ("train.learning_rate=1e-4,2e-4,4e-4", [1e-4, 2e-4, 4e-4]),
        ("train.lora.r=[8, 16]", [8, 16]),
        ("train.select=last,best", ["last", "best"]),
        ("train.epochs=[3]", [3]),
        (
            'train.lora.target_modules=[["q_proj"],["q_proj","v_proj"]]',
            [["q_proj"], ["q_proj", "v_proj"]],
        ),
        ('train.lora.target_modules=["q_proj"],all-linear', [["q_proj"], "all-linear"]),
        ("train.preference={beta: 0.1, nll: 0},null", [{"beta": 0.1, "nll": 0}, None]),
        ("prepare.examples=10,20", [10, 20]),
    ],
)
def test_several_values(assignment: str, values: list[Any]) -> None:
    grid, single = parse_grid([assignment, "train.epochs=5"])
    assert grid == {assignment.partition("=")[0]: values}
    assert single == {"train": {"epochs": 5}}


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.learning_rate=1e-4", {"train": {"learning_rate": 1e-4}}),
        (
            'train.lora.target_modules=["q_proj", "v_proj"]',
            {"train": {"lora": {"target_modules": ["q_proj", "v_proj"]}}},
        ),
        (
            "prepare.source={kind: jsonl, path: a}",
            {"prepare": {"source": {"kind": "jsonl", "path": "a"}}},
        ),
        (
            'eval.instruction="Think, then answer."',
            {"eval": {"instruction": "Think, then answer."}},
        ),
    ],
)
def test_one_value(assignment: str, value: dict[str, Any]) -> None:
    assert parse_grid([assignment]) == ({}, value)


def test_a_sentence_is_one_value() -> None:
    assert parse_grid(["eval.instruction=Say yes, or no"]) == (
        {},
        {"eval": {"instruction": "Say yes, or no"}},
    )


def test_a_word_that_sets_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="must be FIELD=VALUE"):
        parse_grid(["train.epochs"])


def sweep(**fields: Any) -> Sweep:
    """A sweep of four points, one in each state that a table has to show."""
    points = [
        {"status": "succeeded", "validation_loss": 0.61234, "train_loss": 0.5, "rank": 1},
        {
            "status": "stopped",
            "validation_loss": 0.95,
            "rank": 2,
            "reason": "Stopped early: it was worse.",
        },
        {"status": "failed", "rank": 3, "reason": "The loss is not a number."},
        {"status": "running", "percent": 45.2, "validation_loss": 0.7},
    ]
    known: dict[str, Any] = {
        "id": ID,
        "adapter": "math",
        "profile": "tiny",
        "status": "running",
        "size": 4,
        "rank_by": "validation_loss",
        "export_best": True,
        "early_stop": True,
        "created_at": NOON,
        "prepare_job": "j",
        "prepare_status": "succeeded",
        "points": [
            {
                "number": n,
                "overrides": {"train.learning_rate": n * 1e-4, "train.lora.r": 8 * n},
                "job": f"20261122-12000{n}-4f9a2c",
                **point,
            }
            for n, point in enumerate(points, start=1)
        ],
    }
    return Sweep.model_validate(known | fields)


def drawn(shown: Sweep, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(render(shown))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_keeps_states_losses_and_jobs_whole(width: int) -> None:
    lines = drawn(sweep(), width)
    assert lines[0].split() == [
        "Sweep",
        ID,
        "math",
        "(tiny)",
        "running,",
        "3",
        "of",
        "4",
        "trained",
    ]
    rows = {line.split()[0]: line.split() for line in lines if line[:1].isdigit()}
    assert rows["1"] == ["1", "0.0001", "8", "succeeded", "0.6123", "1", "20261122-120001-4f9a2c"]
    assert rows["2"][3:] == ["stopped", "0.9500", "2", "20261122-120002-4f9a2c"]
    assert rows["3"][3:] == ["failed", "3", "20261122-120003-4f9a2c"]
    assert rows["4"][3:] == ["running", "45", "%", "0.7000", "20261122-120004-4f9a2c"]
    assert "Point 2: Stopped early: it was worse." in lines
    assert all(len(line) <= width for line in lines)


def test_an_ended_sweep_says_which_is_best_and_what_follows() -> None:
    ended = sweep(
        status="failed",
        finished_at=NOON.replace(minute=3),
        best=1,
        final_job="20261122-120005-4f9a2c",
        final_status="failed",
        error=ErrorBody(code="final_job_ended", message="It failed.", hint="Retry it."),
    )
    text = "\n".join(drawn(ended, 120))
    assert "failed in 3 min 00 s" in text
    assert "Best by validation loss: point 1 (train.learning_rate=0.0001, train.lora.r=8)." in text
    assert "Job 20261122-120005-4f9a2c exports, registers and measures it: failed." in text
    assert "error: It failed.\nfix: Retry it." in text


def test_on_a_pipe_each_change_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=160)
    lines = Lines(console)
    lines.take(sweep())
    lines.take(sweep())
    lines.take(sweep(status="succeeded"))
    told: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert told.splitlines() == [
        "point 1   train.learning_rate=0.0001, train.lora.r=8: succeeded, validation loss 0.6123, train loss 0.5000",
        "point 2   train.learning_rate=0.0002, train.lora.r=16: stopped, validation loss 0.9500 "
        "(Stopped early: it was worse.)",
        "point 3   train.learning_rate=0.0003, train.lora.r=24: failed (The loss is not a number.)",
        "point 4   train.learning_rate=0.0004, train.lora.r=32: running 45 %, validation loss 0.7000",
        "sweep     3 of 4 trained",
        "sweep     succeeded",
    ]


@pytest.mark.redis
def test_from_the_command_to_the_table(loco, started, client, ledger, hands) -> None:
    running = started(
        *("sweep", "math", "--profile", "tiny", "--set", "train.learning_rate=1e-4,2e-4"),
        *("--set", "prepare.examples=20", "--export", "none", "--wait", "--json"),
    )
    hands.ledger.ping()
    claim = None
    while claim is None:
        claim = ledger.claim(Stage.PREPARE.queue, worker_id="hands", nonce="first")
        assert running.poll() is None, running.communicate()
    assert claim.job.spec.prepare.examples == 20
    hands.commit(claim, {})
    [listed] = client.sweeps()
    advance(ledger, listed.id)
    for loss in (0.5, 0.6):
        measured = {"validation_loss": loss, "last_loss": 0.4, "total_steps": 20}
        hands.commit(hands.claim(Stage.TRAIN), measured)
    advance(ledger, listed.id)
    said, told = running.communicate(timeout=60)
    assert running.returncode == 0, told
    shown = json.loads(said)
    assert (shown["status"], shown["best"]) == ("succeeded", 1)
    assert "sweep     succeeded" in told
    assert listed.id in loco("sweeps").stdout
    assert "Best by validation loss: point 1" in loco("sweeps", listed.id).stdout
    watched = loco("watch", listed.id)
    assert (watched.returncode, "Best by validation loss: point 1" in watched.stdout) == (0, True)
    refused = loco("job", listed.id)
    assert (refused.returncode, f"`loco sweeps {listed.id}`" in refused.stderr) == (2, True)


@pytest.mark.redis
def test_cancel_takes_a_sweep(loco, client, tmp_path) -> None:
    made = client.submit_sweep("math", {"train.epochs": [1, 2]}, profile="tiny")
    rows = loco("jobs").stdout.splitlines()
    assert (rows[0].split()[-1], rows[1].split()[-1]) == ("sweep", made.id)
    assert "cancelled" in loco("cancel", made.id).stdout
    assert client.wait_sweep(made.id).status == "cancelled"
    words = f"sh -c 'echo $LOCO_JOB_ID $LOCO_JOB_STATUS $LOCO_JOB_ADAPTER > {tmp_path}/told'"
    watched = loco("watch", made.id, "--notify-command", words)
    assert watched.returncode == 1
    assert (tmp_path / "told").read_text() == f"{made.id} cancelled math\n"
    early = loco("sweep", "math", "--set", "train.epochs=1,2", "--notify")
    assert (early.returncode, "--notify needs --wait" in early.stderr) == (2, True)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "prepare.examples=10,20"), "one prepare"),
        (
            ("--set", "train.epochs=1,2", "--set", "seed=3"),
            "--set seed: this is not a field of a stage",
        ),
        (("--set", "train.epochs=3"), "This sweep has 1 points"),
    ],
)
def test_what_is_no_sweep_is_refused_with_the_fix(loco, words, said) -> None:
    ended = loco("sweep", "math", "--profile", "tiny", *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "fix:" in ended.stderr
