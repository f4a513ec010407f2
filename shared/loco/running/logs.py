"""The log of an attempt, read piece by piece, also while it is written."""

import codecs
import os
import stat
from pathlib import Path
from typing import BinaryIO

from loco.contracts.errors import NotFound
from loco.contracts.jobs import Job, StageStatus
from loco.contracts.logs import LogPage
from loco.contracts.paths import inside
from loco.contracts.stages import Stage
from loco.running.attempt import LOG


def read_log(
    adapters_dir: Path,
    job: Job,
    stage: Stage,
    *,
    attempt: int | None = None,
    offset: int = 0,
    limit: int,
) -> LogPage:
    """A piece of the log of a stage's attempt.

    Args:
        adapters_dir: holds the job's run folder.
        job: read before the file, so that the log of an attempt that has ended is complete.
        stage: one of its stages.
        attempt: which of those that left a log, from 1; none: the newest.
        offset: byte to begin at.
        limit: bytes at most.

    Raises:
        NotFound: the job has no such stage, or the stage no such attempt.
        UnsafePath: a link leads out of the job's folder.
    """
    task = job.stage(stage)
    if task is None:
        raise NotFound(
            f"Job {job.id} has no stage {stage}.",
            param="stage",
            hint=f"It has {', '.join(t.stage for t in job.stages)}.",
        )
    logs = _logs(adapters_dir, job, stage)
    if attempt is not None and attempt > len(logs):
        raise NotFound(
            f"Stage {stage} of job {job.id} has logs of {len(logs)} attempts, none of attempt {attempt}.",
            param="attempt",
            hint="Leave attempt out for the newest one."
            if logs
            else "No attempt has left a log yet.",
        )
    number = attempt or len(logs)
    ended = number < len(logs) or task.status is not StageStatus.RUNNING
    text, start, next_offset, size = "", 0, 0, 0
    if number:
        with _opened(logs[number - 1]) as file:
            size = os.fstat(file.fileno()).st_size
            start = min(offset, size)
            file.seek(start)
            data = file.read(limit)
            text, read = _text(data, final=ended and start + len(data) >= size)
            next_offset = start + read
    return LogPage(
        job_id=job.id,
        stage=stage,
        attempt=number,
        attempts=len(logs),
        offset=start,
        next_offset=next_offset,
        size=size,
        # a stage that waits for its first attempt has its log before it
        ended=ended if logs else task.status.is_terminal,
        text=text,
    )


def _text(data: bytes, *, final: bool) -> tuple[str, int]:
    """Bytes as text, and how many: a character that is cut off at the end waits, unless it is final."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(data, final)
    return text, len(data) - len(decoder.getstate()[0])


def _logs(adapters_dir: Path, job: Job, stage: Stage) -> list[Path]:
    """The logs of a stage's attempts, oldest first: by fencing token, which only grows."""
    run = inside(adapters_dir, f"{job.adapter}/runs/{job.id}")
    folder = run / stage
    found: list[tuple[int, Path]] = []
    if folder.is_dir():
        for entry in inside(run, stage.value).iterdir():
            token = entry.name.removeprefix("a")
            if entry.name.startswith("a") and token.isdecimal() and (entry / LOG).is_file():
                found.append((int(token), inside(run, f"{stage}/{entry.name}/{LOG}")))
    return [path for _, path in sorted(found)]


def _opened(path: Path) -> BinaryIO:
    """The log, if it is a regular file still; a pipe that was put in its place does not block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _gone(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _gone(path)
    return os.fdopen(descriptor, "rb")


def _gone(path: Path) -> NotFound:
    return NotFound(f"{path.name} is no longer on the server.", hint="Somebody deleted it.")
