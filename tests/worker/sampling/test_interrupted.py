"""Source self interrupted: its program or the server is killed, and nothing answered is asked again.

The base is SmolLM2 on a real model host. It knows capitals better than sums, so few tokens are needed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watched_ollama import WatchedOllama

from loco.contracts.errors import OllamaUnavailable
from loco.contracts.program_events import ErrorEvent, parse_event
from loco.contracts.specs import Inputs, StageRun
from loco.contracts.stages import Stage

pytestmark = pytest.mark.redis

CAPITALS = {
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Germany": "Berlin",
    "France": "Paris",
    "Russia": "Moscow",
    "Greece": "Athens",
    "Cuba": "Havana",
    "Austria": "Vienna",
    "Italy": "Rome",
    "Norway": "Oslo",
    "Portugal": "Lisbon",
    "China": "Beijing",
}


@pytest.fixture
def capitals(stage_adapters: Path) -> dict[str, Any]:
    """A source self over questions that a small base solves now and then."""
    rows = [
        {
            "question": f"What is the capital of {country}?",
            "answer": city,
            "grader": {"kind": "contains", "all": [city]},
        }
        for country, city in CAPITALS.items()
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (stage_adapters / "math" / "capitals.jsonl").write_text(text)
    return {
        "questions": {"kind": "jsonl", "path": "capitals.jsonl"},
        "instruction": "Answer in one short sentence.",
        "temperature": 0.6,
        "num_predict": 20,
        "num_ctx": 256,
        "validation": 0,
    }


@pytest.fixture
def program(
    spec_of: Any, inputs_of: Callable[..., Inputs], tmp_path: Path
) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts prepare as a program: `program("out", url=…, examples=4)`."""

    def start(
        out: str, *, url: str, answers: str = "answers", **spec: Any
    ) -> "subprocess.Popen[str]":
        inputs = inputs_of(answers_dir=tmp_path / answers, ollama_host=url)
        fields = spec_of(**spec).model_dump(mode="json")
        file = tmp_path / f"{out}.json"
        file.write_text(StageRun(stage=Stage.PREPARE, spec=fields, inputs=inputs).model_dump_json())
        return subprocess.Popen(
            [sys.executable, "-m", "loco_worker.prepare", "--spec", file, "--out", tmp_path / out],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_kept(folder: Path, count: int) -> None:
    """Returns once so many answers are on disk."""
    deadline = time.monotonic() + 30
    while sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl")) < count:
        assert time.monotonic() < deadline, "answers that came were not kept"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_program_and_a_larger_job_go_on_from_what_was_answered(
    program: Any, run: Any, capitals: dict[str, Any], watched_ollama: WatchedOllama, tmp_path: Path
) -> None:
    watched = watched_ollama
    watched.hold_after(3)  # fewer than the rows, so that one more is asked whatever was right
    killed = program("killed", url=watched.url, examples=4, **capitals)
    watched.wait_held()
    wait_kept(tmp_path / "answers", 3)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    watched.drop_held()
    assert len(watched.answered) == 3
    assert not (tmp_path / "killed" / "training_data.jsonl").exists()

    first = run("a", url=watched.url, examples=4, **capitals)
    assert len(first.rows) == 4
    assert first.sampling.known == 3
    assert len(watched.answered) == first.sampling.asked > 3
    assert watched.unloaded, "the base gives its memory back"

    before = len(watched.answered)
    more = run("b", url=watched.url, examples=6, **capitals)
    assert len(more.rows) > 4
    assert len(watched.answered) - before == more.sampling.asked - more.sampling.known > 0
    assert len(set(watched.answered)) == len(watched.answered), "nothing was asked twice"
    assert len({question.seed for question in watched.answered}) == len(watched.answered)


@pytest.mark.slow
def test_a_server_that_dies_costs_no_answer_and_changes_no_row(
    program: Any, run: Any, capitals: dict[str, Any], watched_ollama: WatchedOllama, tmp_path: Path
) -> None:
    watched = watched_ollama
    watched.hold_after(3)
    asking = program("cut", url=watched.url, examples=4, **capitals)
    watched.wait_held()
    watched.host.kill()
    watched.drop_held()
    said, log = asking.communicate(timeout=60)
    assert asking.returncode == 1, log
    error = error_of(said)
    assert error.error.code == OllamaUnavailable.code
    assert error.retryable
    with pytest.raises(OllamaUnavailable):
        run("down", url=watched.url, examples=4, **capitals)

    watched.host.start()
    cut = run("a", url=watched.url, examples=4, **capitals)
    assert cut.sampling.known == 3
    assert len(set(watched.answered)) == len(watched.answered) == cut.sampling.asked

    # another folder knows nothing, so everything is asked again: the same rows, byte for byte
    fresh = run("b", url=watched.url, examples=4, answers="others", parallel=1, **capitals)
    assert fresh.sampling.known == 0
    assert fresh.content == cut.content
    other = run("c", url=watched.url, examples=4, seed=1, **capitals)
    assert other.content != cut.content


def test_a_base_that_solves_nothing_is_told_what_to_take(
    program: Any, sums: Any, answering: Any, tmp_path: Path
) -> None:
    answering.models = {"smollm2:135m": "sha-base"}
    answering.answer = lambda _: ("The answer is 1000.", "stop")
    wanted = {"questions": sums(40), "examples": 5, "validation": 0, "samples": 1}
    failed = program("none", url=answering.url, **wanted)
    said, log = failed.communicate(timeout=60)
    assert failed.returncode == 1
    error = error_of(said)
    assert error.error.code == "bad_data"
    assert error.user_fault
    assert not error.retryable
    assert "solved 0 of 40 questions" in error.error.message
    assert error.error.hint is not None
    assert "too few right answers of its own" in error.error.hint
    assert "Traceback" not in log
    assert error.error.hint in log

    gold = program("gold", url=answering.url, fallback="gold", **wanted)
    said, log = gold.communicate(timeout=60)
    assert gold.returncode == 0, log
    result = json.loads((tmp_path / "gold" / "result.json").read_text())
    assert result["kept"] == result["sampling"]["gold"] == 5
    assert result["sampling"]["advice"], "it says so all the same"
    assert result["sampling"]["known"] == 40, "the first one's answers are kept"


def error_of(said: str) -> ErrorEvent:
    """The error a program ended with."""
    events = [parse_event.validate_json(line) for line in said.splitlines()]
    (error,) = [event for event in events if isinstance(event, ErrorEvent)]
    return error
