"""Runs one claimed stage: claim, child process, relayed events, renewed lease, commit, publish.

Called by the Celery task of both workers with nothing but the queue: what to run, the ledger says.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from uuid import uuid4

from loco.contracts.disk import disk_full, is_disk_full, nothing_fits
from loco.contracts.errors import DiskFull, LocoError, RedisUnavailable, WorkerCrashed
from loco.contracts.files import write_text
from loco.contracts.jobs import Failure
from loco.contracts.paths import inside
from loco.contracts.program_events import ErrorEvent
from loco.contracts.specs import STAGE_SPECS
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Claim, CommitAnswer, Ledger, Renewal
from loco.running.attempt import (
    LOG,
    SPEC,
    attempt_folder,
    collect,
    earlier_tasks,
    fingerprint,
    reusable,
    stage_run,
    sweep_others,
)
from loco.running.child import Child, log_tail
from loco.running.lease import Lease
from loco.running.publish import publish
from loco.running.relay import Relay
from loco.running.verify import intact
from loco.settings import Settings
from loco.stage.environment import child_environment, fetches
from loco.stage.program import EXIT_FAILED, EXIT_STOPPED

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_REDIS_PAUSE_SECONDS = 1.0

_AnswerT = TypeVar("_AnswerT")


class _End(NamedTuple):
    """How a stage program ended."""

    #: Exit code; negative: the signal that killed it.
    code: int
    #: The error it reported.
    error: ErrorEvent | None
    #: Why it was stopped: CANCEL, DRAIN, LOST (the lease is gone or could not be renewed), or None.
    reason: Renewal | None


class Runner:
    """Runs stages of one worker, one at a time.

    Args:
        ledger: says what to run and takes what came of it.
        settings: folders, hosts and timings.
        worker_id: the worker's name in the ledger.
        send_hint: tells the next stage's queue that there is work.
        command: the program of a stage; the default is its module in this process's Python.
        on_renewal: called with the task's ID after each renewal of its lease.
        follow: has Ollama and the registry's readable copy follow what register or eval committed;
            the worker's main process does so again where it failed.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        worker_id: str,
        send_hint: Callable[[str, Stage], object],
        command: Callable[[Stage], Sequence[str]] | None = None,
        on_renewal: Callable[[str], None] | None = None,
        follow: Callable[[], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._worker_id = worker_id
        self._send_hint = send_hint
        self._command = command or (lambda stage: [sys.executable, "-P", "-m", stage.program])
        self._on_renewal = on_renewal or (lambda _task_id: None)
        self._follow = follow or (lambda: None)

    def run_one(self, queue: Queue) -> bool:
        """Claims the best ready stage of a queue and runs it to its end.

        Returns:
            False when there was nothing to run.
        """
        nonce = uuid4().hex  # a claim whose answer was lost is answered again, not claimed twice
        claim = _insist(
            lambda: self._ledger.claim(queue, worker_id=self._worker_id, nonce=nonce), "claim"
        )
        if claim is None:
            return False
        logger.info("%s: attempt %d, token %d", claim.task_id, claim.attempt, claim.token)
        with Lease(self._ledger, claim, every=self._settings.timings.renew) as lease:
            lease.on_renewal(lambda: self._on_renewal(claim.task_id))
            self._on_renewal(claim.task_id)
            try:
                committed = self._run(claim, lease)
            except Exception as error:  # the boundary: our fault ends the stage, not the worker
                logger.exception("%s failed", claim.task_id)
                self._fail(claim, error)
                committed = None
        if committed in (CommitAnswer.NEXT, CommitAnswer.DONE, CommitAnswer.ALREADY):
            self._after_commit(claim, committed)
        return True

    def _run(self, claim: Claim, lease: Lease) -> CommitAnswer | None:
        """Runs or reuses the stage; None when it did not commit."""
        run = _insist(lambda: stage_run(self._ledger, self._settings, claim), "inputs")
        earlier = _insist(lambda: earlier_tasks(self._ledger, claim.job, claim.stage), "inputs")
        spec = STAGE_SPECS[claim.stage].model_validate(run.spec)
        mark = fingerprint(run, earlier, spec)
        answer = self._reuse(claim, mark) if reusable(claim.stage, spec) else None
        if answer is not None:
            return answer
        folder = attempt_folder(self._settings, claim)
        sweep_others(folder, resume=run.inputs.resume)
        write_text(folder / SPEC, run.model_dump_json(indent=2) + "\n")
        return self._conclude(claim, folder, mark, self._supervise(claim, lease, folder))

    def _reuse(self, claim: Claim, mark: str) -> CommitAnswer | None:
        """Commits an earlier run with the same inputs in place of this one, if there is one."""
        if not claim.job.spec.reuse:
            return None
        earlier = _insist(lambda: self._ledger.committed(mark), "reuse")
        if earlier is None or not intact(self._settings.adapters_dir, earlier.artifacts):
            return None
        source = earlier.reused_from or earlier.job_id
        logger.info("%s: same inputs as in %s, reused", claim.task_id, source)
        answer = _insist(
            lambda: self._ledger.commit(
                claim.task_id,
                claim.token,
                result=earlier.result or {},
                artifacts=earlier.artifacts,
                fingerprint=mark,
                reused_from=source,
            ),
            "commit",
        )
        return None if answer is CommitAnswer.GONE else answer

    def _supervise(self, claim: Claim, lease: Lease, folder: Path) -> _End:
        """Runs the stage program to its end."""
        timings = self._settings.timings
        command = [
            *self._command(claim.stage),
            *("--spec", str(folder / SPEC), "--out", str(folder)),
            *("--supervised", str(os.getpid()), "--watchdog-seconds", str(timings.watchdog)),
        ]
        environment = child_environment(
            passed=self._settings.pass_env, tokens=fetches(claim.job.spec.part(claim.stage))
        )
        child = Child(command, log=folder / LOG, environment=environment)
        relay = Relay(self._ledger, claim, self._settings.adapters_dir)

        def renewed() -> None:
            child.tick()
            self._on_renewal(claim.task_id)

        lease.on_renewal(renewed)
        reason: Renewal | None = None
        kill_at = float("inf")
        try:
            while child.running:
                child.bound_log()
                event = child.event(_POLL_SECONDS)
                if event is not None:
                    relay.take(event)
                relay.flush()
                if lease.answer is Renewal.LOST:
                    reason = Renewal.LOST
                    child.kill()
                elif reason is None:
                    reason = _reason_to_stop(lease, timings.stale_child)
                    if reason is not None:
                        logger.info("%s: asked to stop (%s)", claim.task_id, reason)
                        child.request_stop()
                        kill_at = time.monotonic() + timings.stop_grace
                elif time.monotonic() > kill_at:
                    logger.warning("%s: did not stop in time, killed", claim.task_id)
                    child.kill()
        finally:
            child.kill()
            code = child.finish()
        while (event := child.event(0)) is not None:
            relay.take(event)
        _insist(relay.finish, "events")
        return _End(code, relay.error, reason)

    def _conclude(self, claim: Claim, folder: Path, mark: str, end: _End) -> CommitAnswer | None:
        """Tells the ledger how the attempt ended."""
        task_id, token = claim.task_id, claim.token
        code, error, reason = end
        logger.info("%s: program ended with %d", task_id, code)
        if code == 0:
            return self._commit(claim, folder, mark)
        if reason is Renewal.CANCEL:
            _insist(lambda: self._ledger.cancelled(task_id, token), "cancelled")
        elif code == EXIT_FAILED and error is not None:
            failure = Failure(
                code=error.error.code,
                message=error.error.message,
                hint=error.error.hint,
                stage=claim.stage,
                attempt=claim.attempt,
                user_fault=error.user_fault,
            )
            _insist(
                lambda: self._ledger.fail(task_id, token, failure, retryable=error.retryable),
                "fail",
            )
        elif reason is not None or code == EXIT_STOPPED:
            # stopped without our asking: somebody signalled the program
            _insist(lambda: self._ledger.release(task_id, token), "release")
        elif code > 0 and nothing_fits(folder):
            self._fail(claim, disk_full(folder))  # it could not even say so
        else:
            failure = _crash(claim, code, folder)
            _insist(lambda: self._ledger.crash(task_id, token, failure), "crash")
            self._send_hint(claim.job_id, claim.stage)
        return None

    def _commit(self, claim: Claim, folder: Path, mark: str) -> CommitAnswer:
        result, artifacts = collect(self._settings, folder, claim.stage)
        answer = _insist(
            lambda: self._ledger.commit(
                claim.task_id,
                claim.token,
                result=result,
                artifacts=tuple(artifacts),
                fingerprint=mark,
            ),
            "commit",
        )
        if answer is CommitAnswer.STALE:
            logger.warning("%s: token %d is outdated, result not kept", claim.task_id, claim.token)
        else:
            sweep_others(folder)
        return answer

    def _fail(self, claim: Claim, error: Exception) -> None:
        if is_disk_full(error) and not isinstance(error, DiskFull):
            error = disk_full(self._settings.adapters_dir)
        ours = (
            error
            if isinstance(error, LocoError)
            else LocoError(f"{type(error).__name__}: {error}", hint="The worker's log has more.")
        )
        failure = Failure(
            code=ours.code,
            message=ours.message,
            hint=ours.hint,
            stage=claim.stage,
            attempt=claim.attempt,
            user_fault=ours.user_fault,
        )
        _insist(
            lambda: self._ledger.fail(
                claim.task_id, claim.token, failure, retryable=ours.retryable
            ),
            "fail",
        )

    def _after_commit(self, claim: Claim, answer: CommitAnswer) -> None:
        """Publishes and passes the job on. The reaper does either again when we die in between."""
        publish_committed(self._ledger, self._settings, claim.task_id)
        order = claim.job.spec.stages
        following = order[order.index(claim.stage) + 1 :]
        if following and answer is not CommitAnswer.DONE:
            self._send_hint(claim.job_id, following[0])
        if claim.stage in (Stage.REGISTER, Stage.EVAL):
            try:
                self._follow()
            except Exception:  # it stands in the ledger, and is tried again
                logger.exception("%s: promoted, but not yet in Ollama", claim.task_id)


def publish_committed(ledger: Ledger, settings: Settings, task_id: str) -> None:
    """Publishes a committed task's files and notes it; trouble is logged and tried again later."""
    try:
        task = ledger.task(task_id)
        job = ledger.job(task.job_id)
        if not job.spec.is_point:  # of a sweep only the best appears beside the recipe
            folder = inside(settings.adapters_dir, f"{job.adapter}/{job.spec.place}")
            publish(settings.adapters_dir, folder, task)
        ledger.published(task_id)
    except (OSError, LocoError) as error:
        logger.warning("%s: not published yet: %s", task_id, error)


def _reason_to_stop(lease: Lease, stale_seconds: float) -> Renewal | None:
    if lease.answer in (Renewal.CANCEL, Renewal.DRAIN):
        return lease.answer
    return Renewal.LOST if lease.age > stale_seconds else None


def _crash(claim: Claim, code: int, folder: Path) -> Failure:
    """Why a program ended without saying so, as far as its exit code and its log tell."""
    hint = f"The attempt's log is {folder / LOG}."
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"was killed by {name}"
        if name == "SIGKILL":
            hint = (
                "This is often the kernel's out-of-memory killer (see `dmesg`). Lower "
                f"batch_size or max_length, or give the machine more memory. {hint}"
            )
    else:
        how = f"ended with exit code {code} without a message"
    tail = log_tail(folder / LOG)
    return Failure(
        code=WorkerCrashed.code,
        message=f"Stage {claim.stage} {how}." + (f" Its last lines:\n{tail}" if tail else ""),
        hint=hint,
        stage=claim.stage,
        attempt=claim.attempt,
        user_fault=WorkerCrashed.user_fault,
    )


def _insist(call: Callable[[], _AnswerT], name: str) -> _AnswerT:
    """Calls the ledger until it answers.

    While Redis is down nothing else can be done here, and every call is safe to repeat: a token
    that was superseded meanwhile is refused.
    """
    while True:
        try:
            return call()
        except RedisUnavailable as error:
            logger.warning("%s: Redis does not answer, trying again: %s", name, error)
            time.sleep(_REDIS_PAUSE_SECONDS)
