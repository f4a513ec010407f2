"""What the committed stages of a job left that a comparison reads: environments and answers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loco.contracts.errors import UnsafePath
from loco.contracts.jobs import Job, Task
from loco.contracts.paths import inside
from loco.contracts.stages import Stage

ENVIRONMENT = "environment.json"
ANSWERS = "eval.jsonl"
#: A larger file is not one of ours, bytes.
_LARGEST = 256_000_000


class Answered(NamedTuple):
    """The candidate's answer to one problem."""

    text: str
    correct: bool


@dataclass(frozen=True)
class JobRecords:
    """A job with what a comparison needs of it."""

    job: Job
    #: Its committed stages, those it builds on included.
    tasks: Mapping[Stage, Task]
    #: What each stage ran on; stages of earlier releases have none.
    environments: Mapping[Stage, Mapping[str, Any]]
    #: (set, problem) to the candidate's answer; None: no readable answers.
    answers: Mapping[tuple[str, str], Answered] | None


def read_records(job: Job, tasks: Mapping[Stage, Task], adapters_dir: Path) -> JobRecords:
    """A job's records. What is gone, unreadable or not what was committed counts as not recorded.

    Args:
        job: the job.
        tasks: see `LedgerReader.outputs`.
        adapters_dir: the artifacts' paths begin here.
    """
    environments = {}
    for stage, task in tasks.items():
        content = _content(task, ENVIRONMENT, adapters_dir)
        environment = _json(content) if content is not None else None
        if isinstance(environment, dict):
            environments[stage] = environment
    evaluated = tasks.get(Stage.EVAL)
    answers = _content(evaluated, ANSWERS, adapters_dir) if evaluated else None
    return JobRecords(job, tasks, environments, None if answers is None else _answers(answers))


def _content(task: Task, name: str, adapters_dir: Path) -> bytes | None:
    found = next((a for a in task.artifacts if a.name == name), None)
    if found is None or found.size > _LARGEST:
        return None
    try:
        content = inside(adapters_dir, found.path).read_bytes()
    except (UnsafePath, OSError):
        return None
    return content if hashlib.sha256(content).hexdigest() == found.sha256 else None


def _answers(content: bytes) -> dict[tuple[str, str], Answered] | None:
    answers = {}
    for line in content.splitlines():
        row = _json(line)
        if not isinstance(row, dict):
            return None
        if row.get("role") == "candidate":
            key = str(row.get("set")), str(row.get("id"))
            answers[key] = Answered(str(row.get("answer")), bool(row.get("correct")))
    return answers or None


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
