"""The queue: Celery on Redis, which carries hints and nothing else.

No Celery setting makes a message both never lost and never doubled on Redis (docs/adr/0001), so a
message only says "there may be work for you", is taken off before it is run, and the ledger decides.
"""

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from celery import Celery
from celery.loaders.app import AppLoader
from kombu import Queue as KombuQueue
from kombu import pools
from kombu.exceptions import OperationalError
from kombu.utils.collections import eqhash
from redis.exceptions import RedisError

from loco.contracts.errors import RedisUnavailable
from loco.contracts.stages import Queue
from loco.ledger.connection import masked
from loco.ledger.ledger import Hint, broker_prefix
from loco.queue.transport import drop_what_is_no_message
from loco.settings import Settings

#: The one task. Its keyword arguments are the hint's fields, `job_id` and `stage`.
TASK = "loco.stage"

#: Seconds and counts: a hint that can't be sent at once is given up, the reaper sends another.
_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}

log = logging.getLogger(__name__)


def celery_app(settings: Settings) -> Celery:
    """A Celery app for workers and senders, configured, not yet connected.

    Raises:
        RedisUnavailable: the settings name no Redis.
    """
    if settings.redis_url is None:
        raise RedisUnavailable(
            "No Redis is configured.",
            hint="Set LOCO_REDIS_URL, or use `loco up`, which starts a server.",
        )
    drop_what_is_no_message()
    app = Celery("loco", set_as_current=False, loader=_Loader)
    app.conf.update(_configuration(settings.redis_url, settings.namespace))
    return app


class _Loader(AppLoader):
    """Imports as Python does: Celery's own looks into the current folder first, whatever lies there."""

    def import_from_cwd(
        self, module: str, imp: Callable[..., Any] | None = None, package: str | None = None
    ) -> Any:
        """Imports a module, not from the current folder."""
        return (imp or self.import_module)(module, package=package)


def broker_url(redis_url: str) -> str:
    """The URL as Celery's transport reads it: a Unix socket has another form there than in redis-py."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    credentials = parts.netloc.rpartition("@")[0]
    database = parse_qs(parts.query).get("db", ["0"])[0]
    at = f"{credentials}@" if credentials else ""
    return f"redis+socket://{at}{parts.path}?virtual_host={database}"


def close_queue(app: Celery) -> None:
    """Closes an app and its sockets, which `Celery.close` leaves to the garbage collector."""
    connection = app.connection_for_write()
    app.pool.force_close_all()
    for group in (pools.producers, pools.connections):  # where a later app would find them, closed
        if eqhash(connection) in group:
            del group[connection]
    app.close()


def send_hint(app: Celery, hint: Hint) -> bool:
    """Tells the workers of a stage's queue that it may be ready.

    Returns:
        False when the broker does not take it; the job is safe all the same, the reaper of any
        running process sends the hint again.
    """
    try:
        app.send_task(
            TASK,
            kwargs=hint.model_dump(mode="json"),
            queue=hint.queue.value,
            retry_policy=_RETRY,
            ignore_result=True,
        )
    except (OperationalError, RedisError, OSError) as error:
        log.warning(
            "hint for job %s stage %s not sent to %s (%s); it will be sent again",
            hint.job_id,
            hint.stage,
            masked(str(app.conf.broker_url)),
            error,
        )
        return False
    return True


def _configuration(redis_url: str, namespace: str) -> dict[str, Any]:
    return {
        "broker_url": broker_url(redis_url),
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_queues": [KombuQueue(queue.value) for queue in Queue],
        "task_default_queue": Queue.CPU.value,
        # Early acknowledgement: what happens to an attempt is the ledger's business.
        "task_acks_late": False,
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_pool": "prefork",
        "worker_pool_start_method": "spawn",
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # `GET /workers` reads the ledger; Celery's own remote control is not needed.
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "broker_connection_timeout": 3,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # the default gives up for good after 100
        "broker_transport_options": {
            "visibility_timeout": 120,
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "global_keyprefix": broker_prefix(namespace),
            **_RETRY,
        },
    }
