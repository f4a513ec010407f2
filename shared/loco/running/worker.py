"""What both Celery workers are made of: the one task, the reaper, heartbeats, drain.

Composition roots are `loco_worker/app.py` and `loco_trainer/app.py`.

A worker is a main process and one pool child. The main process takes messages, reaps, beats and
hears SIGTERM; the pool child runs `Runner.run_one`, whose stage program is its child. Each dies with
its parent, so killing the main process ends the stage as well and the lease runs out.

Draining does not use Celery's soft shutdown: that waits out its whole timeout inside the signal
handler, before anybody can be told. Warm shutdown is enough, because a drained stage stops by itself.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from celery import Celery, shared_task, signals
from celery.worker import state

from loco.contracts.errors import RedisUnavailable
from loco.contracts.jobs import WorkerInfo
from loco.contracts.plans import Device
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Hint, Ledger
from loco.queue.celery_app import TASK, celery_app, send_hint
from loco.queue.reaper import Reaper
from loco.running.registry_file import export_committed
from loco.running.runner import Runner, publish_committed
from loco.settings import Settings
from loco.stage import hardware
from loco.stage.deathsig import die_with_parent
from loco.stage.gpu_lock import device_id, pin

logger = logging.getLogger(__name__)

#: Carries the worker's ID from the main process to its pool child.
WORKER_ID = "LOCO_WORKER_ID"

_BEAT_SECONDS = 5.0
#: Between two looks at the memory that is free.
_LOOK_SECONDS = 60.0
#: Between two looks for files that nothing uses any more.
_TIDY_SECONDS = 3600.0
#: On top of the time a stage gets to stop: hashing, committing, Celery's own end.
_EXIT_MARGIN_SECONDS = 10.0


def worker_app(
    settings: Settings,
    queue: Queue,
    *,
    module: str,
    command: Callable[[Stage], Sequence[str]] | None = None,
    serve: Callable[[Ledger, str], None] | None = None,
    tidy: Callable[[Ledger], object] | None = None,
) -> Celery:
    """The Celery app of the worker of one queue.

    Args:
        settings: of this process; `redis_url` must be set.
        queue: `cpu` or `gpu`.
        module: the module that calls this; the pool child, a fresh interpreter, imports it too.
        command: the program of a stage; the default is its module in this process's Python.
        serve: has the Ollama at an address follow the ledger; None: this worker does not do that.
        tidy: deletes files that nothing uses any more; called every hour. None: likewise.
    """
    if queue is Queue.GPU and (words := pin(settings.gpu)):
        logger.warning(words)
    app = celery_app(settings)
    app.conf.imports = (module,)
    worker = _Worker(app, settings, queue, command=command, serve=serve, tidy=tidy)
    # shared: the pool child gets its app by pickle, without the tasks registered on this one
    shared_task(name=TASK, ignore_result=True)(worker.run_stage)
    # weak=False: Celery's signals hold their receivers weakly
    signals.setup_logging.connect(_log_to_stderr, weak=False)
    signals.worker_init.connect(worker.on_init, weak=False)
    signals.worker_ready.connect(worker.on_ready, weak=False)
    signals.worker_process_init.connect(worker.on_pool_child, weak=False)
    signals.worker_shutting_down.connect(worker.on_shutting_down, weak=False)
    return app


def worker_arguments(queue: Queue) -> list[str]:
    """Arguments of `celery worker` (after the app) for one queue."""
    return [
        "--quiet",
        "worker",
        *("--queues", queue.value),
        *("--hostname", f"{queue}-{os.getpid()}@%h"),
        *("--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def device_name(queue: Queue) -> str:
    """What the stages of a queue compute on: `cpu`, or the GPU the worker is pinned to."""
    device = device_id() if queue is Queue.GPU else "cpu"
    return device if device == "cpu" else f"gpu {device}"


class _Worker:
    """One worker's parts, in whichever of its two processes this is."""

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        queue: Queue,
        *,
        command: Callable[[Stage], Sequence[str]] | None,
        serve: Callable[[Ledger, str], None] | None,
        tidy: Callable[[Ledger], object] | None,
    ) -> None:
        self._app = app
        self._command = command
        self._serve = serve
        self._tidy = tidy
        self._settings = settings
        self._queue = queue
        self._ledger = Ledger.connect(
            str(settings.redis_url), namespace=settings.namespace, timings=settings.timings
        )
        self._beaten_at = 0.0
        self._hardware: Device | None = None
        self._looked_at = float("-inf")

    # In the pool child

    def on_pool_child(self, **_: Any) -> None:
        """Has the kernel kill this process together with the main one."""
        die_with_parent(_main_pid())
        # a thread: the driver may take seconds, and a stage may be waiting
        threading.Thread(target=self._look, name="hardware", daemon=True).start()

    def run_stage(self, job_id: str, stage: str) -> None:
        """The Celery task. The message is a hint: what is run, the ledger says."""
        logger.info("hint: %s of job %s", stage, job_id)
        runner = Runner(
            self._ledger,
            self._settings,
            worker_id=os.environ[WORKER_ID],
            send_hint=self._send_hint,
            command=self._command,
            on_renewal=self._beat_running,
            follow=self._follow,
        )
        runner.run_one(self._queue)
        self._beat(task_id=None)

    def _beat_running(self, task_id: str) -> None:
        if time.monotonic() - self._beaten_at >= min(_BEAT_SECONDS, self._settings.timings.reap):
            self._beat(task_id)

    # In the main process

    def on_init(self, **_: Any) -> None:
        """Names this worker; the pool child inherits the name."""
        pid = os.getpid()
        os.environ[WORKER_ID] = f"{self._queue}-{socket.gethostname()}-{pid}-{uuid4().hex[:6]}"

    def on_ready(self, **_: Any) -> None:
        """Starts the reaper and the heartbeat."""
        Reaper(
            self._ledger,
            send_hint=self._send_hint,
            publish=lambda task_id: publish_committed(self._ledger, self._settings, task_id),
            every=self._settings.timings.reap,
        ).start()
        # apart from the reaper: an Ollama that hangs must not delay that
        threading.Thread(target=self._keep_following, name="follow", daemon=True).start()
        threading.Thread(target=self._beat_idle, name="heartbeat", daemon=True).start()
        if self._tidy is not None:
            threading.Thread(target=self._keep_tidy, name="tidy", daemon=True).start()

    def on_shutting_down(self, **_: Any) -> None:
        """Drains: the running attempt is told at its next renewal, stops and is released."""
        # threads: this is a signal handler, and Redis may not answer
        threading.Thread(target=self._drain, name="drain", daemon=True).start()
        threading.Thread(target=self._exit_in_time, name="exit", daemon=True).start()

    def _drain(self) -> None:
        try:
            self._ledger.drain(os.environ[WORKER_ID])
        except RedisUnavailable as error:
            logger.warning("could not give the stage back, it will time out: %s", error)

    def _exit_in_time(self) -> None:
        timings = self._settings.timings
        time.sleep(timings.renew + timings.stop_grace + _EXIT_MARGIN_SECONDS)
        logger.error("the running stage did not end in time; exiting, the stage will time out")
        os._exit(1)

    def _beat_idle(self) -> None:
        while True:
            if not state.active_requests:  # the pool child beats while it runs a stage
                self._look()
                self._beat(task_id=None)
            time.sleep(_BEAT_SECONDS)

    # In both

    def _look(self) -> None:
        """Looks at what train would find free; only while idle, or it would see its own use."""
        due = time.monotonic() - self._looked_at >= _LOOK_SECONDS
        if self._queue is Queue.GPU and due:
            self._hardware = hardware.of(device_id())
            self._looked_at = time.monotonic()

    def _follow(self) -> None:
        """Has what shows the ledger's registry follow it."""
        export_committed(self._ledger, self._settings)
        if self._serve is not None:
            self._serve(self._ledger, self._settings.ollama_host)

    def _keep_following(self) -> None:
        while True:
            try:
                self._follow()
            except RedisUnavailable as error:
                logger.warning("cannot update Ollama: Redis does not answer: %s", error)
            except Exception:  # the loop must outlive any single fault, and say so
                logger.exception("follow")
            time.sleep(self._settings.timings.reap)

    def _keep_tidy(self) -> None:
        while self._tidy is not None:
            try:
                self._tidy(self._ledger)
            except (RedisUnavailable, OSError) as error:
                logger.warning("unused files stay for now: %s", error)
            except Exception:  # the loop must outlive any single fault, and say so
                logger.exception("tidy")
            time.sleep(_TIDY_SECONDS)

    def _send_hint(self, job_id: str, stage: Stage) -> None:
        send_hint(self._app, Hint(job_id=job_id, stage=stage))

    def _beat(self, task_id: str | None) -> None:
        info = WorkerInfo(
            id=os.environ[WORKER_ID],
            queue=self._queue,
            host=socket.gethostname(),
            pid=_main_pid(),
            device=device_name(self._queue),
            hardware=self._hardware,
            task_id=task_id,
            seen_at=datetime.now(UTC),
        )
        try:
            self._ledger.heartbeat(info)
            self._beaten_at = time.monotonic()
        except RedisUnavailable as error:
            logger.warning("could not send a sign of life: %s", error)


def _log_to_stderr(**_: Any) -> None:
    """Instead of Celery's logging set-up: one format, every logger, standard error."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"
    )


def _main_pid() -> int:
    """Process ID of the worker's main process; its ID carries it."""
    return int(os.environ[WORKER_ID].split("-")[-2])
