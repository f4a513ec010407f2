"""What a script imports from `loco`: documented, light until used, and typed for its type checker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import loco

REPOSITORY = Path(__file__).parents[2]

SCRIPT = """
from loco import Client, InvalidRequest, Job, JobStatus, Stage


def newest(server: Client, adapter: str) -> Job | None:
    return next(iter(server.jobs(adapter=adapter)), None)


with Client("http://127.0.0.1:1") as server:
    try:
        job = server.submit("math", profile="tiny", seed=1, train={"epochs": 2})
    except InvalidRequest as error:
        print(error.param, error.hint)
    else:
        job = server.wait(job.id)
        if job.status is JobStatus.SUCCEEDED:
            last = job.stages[-1]
            reveal_type(last.stage)
            reveal_type(last.stage is Stage.EVAL)
            server.download(job.id, "gguf/unsloth.Q4_K_M.gguf", "math.gguf")
"""


def test_every_name_is_there_and_says_what_it_is() -> None:
    for name in loco.__all__:
        found = getattr(loco, name)
        assert found.__name__ == name
        assert found.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = loco.Nobody


def test_importing_loads_nothing_else() -> None:
    code = "import sys, loco; print(*(m for m in sys.modules if m.startswith(('loco.', 'httpx'))))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == ""


def check_types(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """mypy as a user runs it on a script of theirs: outside this repository, with none of its settings."""
    path = folder / "script.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", path.name],
        cwd=folder,
        env={**os.environ, "MYPYPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_script_type_checks(tmp_path: Path) -> None:
    said = check_types(SCRIPT, tmp_path)
    assert said.returncode == 0, said.stdout
    assert 'Revealed type is "loco.contracts.stages.Stage"' in said.stdout
    wrong = check_types(SCRIPT.replace("seed=1", 'seed="one"').replace("job.id, ", ""), tmp_path)
    assert wrong.returncode == 1
    assert 'incompatible type "str"' in wrong.stdout or "[typeddict-item]" in wrong.stdout
    assert "Missing positional argument" in wrong.stdout
