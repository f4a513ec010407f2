"""Files beside `loco up` that have the names of Python's modules, and what a stage knows.

Before: the working directory was on `sys.path` of every stage program, so a `yaml.py` or `json.py` there
ran with the rights of the service; and every stage had its whole environment, with the hub's token, the
address and password of Redis, and whatever else the shell had set.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loco.contracts.jobs import JobStatus, Task
from loco.contracts.requests import JobRequest
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Ledger
from loco.recipes.resolve import resolve
from loco.running.runner import Runner
from loco.settings import Settings
from loco.stage.environment import child_environment, service_environment

#: Modules that a stage program imports of the standard library and of others.
_NAMES = ("json", "yaml", "pydantic", "random", "argparse", "torch", "hashlib", "loco_worker")
_SECRETS = {
    "HF_TOKEN": "hf_canary",
    "HUGGING_FACE_HUB_TOKEN": "hf_canary",
    "HF_MY_TOKEN": "hf_canary",
    "LOCO_REDIS_URL": "redis://:canary@r:6379/0",
    "LOCO_API_KEY": "canary",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "CUDA_API_KEY": "canary",
    "MY_PASSWORD": "canary",
}
_SPY = """
import json, os, sys
from pathlib import Path
from loco.contracts.specs import StageResult
from loco.contracts.stages import Stage
from loco.stage.program import main

def run(spec, inputs, out_dir, emit):
    (out_dir / "known.json").write_text(json.dumps({"env": dict(os.environ), "path": sys.path}))
    return StageResult(seconds=0, files={"known.json": "known.json"})

sys.exit(main(Stage(sys.argv[1]), run, sys.argv[2:]))
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The marker that the modules of the current folder leave when they run."""
    folder, marker = tmp_path / "here", tmp_path / "ran"
    folder.mkdir()
    for name in _NAMES:
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    return marker


def run_stage(
    ledger: Ledger,
    settings: Settings,
    stage: Stage,
    command: Callable[[Stage], list[str]] | None = None,
    **request: object,
) -> Task:
    asked = JobRequest.model_validate(
        {"adapter": "math", "profile": "tiny", "stages": [stage], **request}
    )
    job, _ = ledger.submit(resolve(settings.adapters_dir, asked))
    runner = Runner(ledger, settings, worker_id="w", send_hint=lambda *_: None, command=command)
    assert runner.run_one(Queue.GPU if stage in (Stage.TRAIN, Stage.EXPORT) else Queue.CPU)
    assert ledger.job(job.id).status is JobStatus.SUCCEEDED, ledger.job(job.id).error
    task = ledger.job(job.id).stage(stage)
    assert task is not None
    return task


@pytest.mark.redis
@pytest.mark.slow
def test_a_module_beside_the_worker_does_not_run_in_a_stage(
    planted: Path, ledger: Ledger, settings: Settings
) -> None:
    sets = {"held_out": {"count": 10}}
    run_stage(
        ledger,
        settings,
        Stage.PREPARE,
        prepare={"examples": 5, "validation": 0},
        eval={"sets": sets},
    )
    assert not planted.exists(), planted.read_text()


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.parametrize("from_hub", [False, True])
def test_a_stage_knows_no_secret_but_the_token_it_fetches_with(
    from_hub: bool,
    ledger: Ledger,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in _SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PASSED", "through")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    (tmp_path / "spy.py").write_text(_SPY)
    settings = settings.model_copy(update={"pass_env": ("PASSED",)})
    source = {"kind": "huggingface"} if from_hub else {"kind": "arithmetic"}
    task = run_stage(
        ledger,
        settings,
        Stage.PREPARE,
        lambda stage: [sys.executable, "-P", str(tmp_path / "spy.py"), stage],
        prepare={"source": source},
    )
    [artifact] = [a for a in task.artifacts if a.name == "known.json"]
    known = json.loads((settings.adapters_dir / artifact.path).read_bytes())
    leaked = {name for name, value in known["env"].items() if "canary" in value}
    assert leaked == ({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} if from_hub else set())
    assert known["env"]["PASSED"] == "through"
    assert known["env"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert all(Path(entry).is_absolute() for entry in known["path"])


def test_a_path_of_python_that_means_the_current_folder_is_left_out() -> None:
    environment = {"PYTHONPATH": ":/a:.:b:/c", "HF_HOME": "/h", "LOCO_REDIS_URL": "canary"}
    assert child_environment(environment) == {
        "PYTHONPATH": "/a:/c",
        "HF_HOME": "/h",
        "PYTHONSAFEPATH": "1",
    }


def test_what_a_compiler_and_a_hub_need_goes_through_and_a_tokens_file_where_it_is_fetched_with() -> (
    None
):
    """Before: a compiler found no headers of an environment module, and a hub was sent a token all the same."""
    needed = ("DYLD_LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH")
    environment = dict.fromkeys((*needed, "HF_HUB_DISABLE_IMPLICIT_TOKEN", "PYTHONSAFEPATH"), "1")
    environment["HF_TOKEN_PATH"] = "/secrets/token"
    assert child_environment(environment, tokens=True) == environment
    del environment["HF_TOKEN_PATH"]
    assert child_environment({**environment, "HF_TOKEN_PATH": "/secrets/token"}) == environment


def test_a_service_gets_its_settings_and_nothing_else_of_the_shell() -> None:
    environment = {**_SECRETS, "PATH": "/bin", "OLLAMA_HOST": "box", "EDITOR": "vi"}
    known = service_environment(environment, passed=["EDITOR"])
    assert known == {
        "PATH": "/bin",
        "OLLAMA_HOST": "box",
        "EDITOR": "vi",
        "PYTHONSAFEPATH": "1",
        **{name: _SECRETS[name] for name in _SECRETS if name.startswith("LOCO_")},
        "HF_TOKEN": "hf_canary",
        "HUGGING_FACE_HUB_TOKEN": "hf_canary",
    }
