"""Runs the HTTP API: `python -m loco_api` (`loco up` starts it with everything else).

Address, Redis and folders come from LOCO_HOST, LOCO_PORT, LOCO_REDIS_URL, LOCO_ADAPTERS_DIR.
"""

import asyncio
import logging
import signal
import socket
import sys
from dataclasses import replace
from types import FrameType

import uvicorn

from loco.contracts.addresses import is_loopback
from loco.contracts.errors import InvalidRequest, LocoError
from loco.ledger.connection import unguarded
from loco.ledger.keys import Keys
from loco.ledger.ledger import Ledger
from loco.queue.celery_app import celery_app
from loco.settings import Settings
from loco_api.app import create_app
from loco_api.connections import Limits, limits_here, protocol, quiet_when_exhausted
from loco_api.context import Context
from loco_api.streams import Streams

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 30
#: After SIGTERM, requests in flight get so long (seconds); event streams end within one.
_SHUTDOWN_SECONDS = 10


class Server(uvicorn.Server):
    """A server whose event streams end when it is told to stop."""

    def __init__(self, config: uvicorn.Config, streams: Streams) -> None:
        super().__init__(config)
        self._streams = streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        quiet_when_exhausted(asyncio.get_running_loop())
        await super().startup(sockets)

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Takes SIGTERM or SIGINT; unlike uvicorn's own, a clean stop ends with exit code 0."""
        self._streams.close()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def build(settings: Settings) -> Context:
    """The parts of one API process.

    Raises:
        InvalidRequest: a setting is missing or wrong.
    """
    if settings.redis_url is None:
        raise InvalidRequest(
            "LOCO_REDIS_URL is not set.",
            param="LOCO_REDIS_URL",
            hint="Set it (redis://127.0.0.1:6379/0), or run `loco up`, which starts a server.",
        )
    if words := unguarded(settings.redis_url):
        logger.warning(" ".join(words))
    ledger = Ledger.connect(
        settings.redis_url, namespace=settings.namespace, timings=settings.timings
    )
    return Context(
        settings=settings,
        ledger=ledger,
        queue=celery_app(settings),
        keys=Keys.connect(settings.redis_url, namespace=settings.namespace),
        streams=Streams(ledger, settings.redis_url),
    )


def check_bind(context: Context) -> None:
    """Refuses to serve a network while nobody needs a key.

    Raises:
        InvalidRequest: the host is not loopback and no key exists.
        RedisUnavailable: the keys cannot be read.
    """
    host = context.settings.host
    if not is_loopback(host) and not context.keys.any():
        raise InvalidRequest(
            f"The server does not listen on {host}: there is no API key, so anybody could "
            "run jobs.",
            param="LOCO_HOST",
            hint="Run `loco keys create NAME` first, or leave LOCO_HOST at 127.0.0.1.",
        )


def server(context: Context, limits: Limits | None = None) -> Server:
    """A server of the API, ready to run.

    Args:
        context: what it serves.
        limits: of its connections; none: the usual ones.
    """
    limits = limits or Limits()
    if context.settings.trusted_proxies:  # a proxy's one address speaks for many
        limits = replace(limits, per_address=limits.connections)
    config = uvicorn.Config(
        create_app(context),
        host=context.settings.host,
        port=context.settings.port,
        http=protocol(limits),
        ws="none",
        server_header=False,
        proxy_headers=False,  # see LOCO_TRUSTED_PROXIES
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return Server(config, context.streams)


def main() -> int:
    """Serves until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        context = build(Settings.from_environment())
        check_bind(context)
    except LocoError as error:
        variable = f"{error.param}:" if error.param and error.param not in error.message else None
        words = filter(None, ("loco_api:", variable, error.message, error.hint))
        print(*words, file=sys.stderr)  # noqa: T201
        return 2
    server(context, limits_here()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
