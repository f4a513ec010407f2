"""How a stage program ends: what its log says of an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from loco.contracts.errors import DataError, SourceUnreachable
from loco.contracts.stages import Stage
from loco.stage.program import main


def run(spec, inputs, out, emit):
    raise {error}


sys.exit(main(Stage.PREPARE, run))
"""


def ended(folder: Path, error: str) -> tuple[int, str, dict[str, object]]:
    """Exit code, log and error event of a program that raises."""
    program, run = folder / "program.py", folder / "spec.json"
    program.write_text(PROGRAM.format(error=error))
    inputs = {
        "job_id": "20261122-143722-4f9a2c",
        "adapter": "math",
        **{f"{name}_dir": str(folder) for name in ("adapter", "models", "locks")},
        "ollama_host": "http://127.0.0.1:9",
    }
    content = {"stage": "prepare", "spec": {"source": {"kind": "arithmetic"}}, "inputs": inputs}
    run.write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, str(program), "--spec", str(run), "--out", str(folder / "out")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    (event,) = [e for e in map(json.loads, done.stdout.splitlines()) if e["type"] == "error"]
    return done.returncode, done.stderr, event


def test_a_fault_of_the_request_is_told_in_words(tmp_path: Path) -> None:
    code, log, event = ended(tmp_path, 'DataError("Nothing is usable.", hint="Take others.")')
    assert code == 1
    assert log == "bad_data: Nothing is usable.\nTake others.\n"
    assert event["user_fault"] is True


@pytest.mark.parametrize("error", ['SourceUnreachable("No hub.")', 'ValueError("ours")'])
def test_other_errors_leave_their_trace(tmp_path: Path, error: str) -> None:
    code, log, event = ended(tmp_path, error)
    assert code == 1
    assert "Traceback" in log
    assert "in run" in log
    assert event["user_fault"] is ("SourceUnreachable" in error)
