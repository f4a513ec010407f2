"""Messages that are no messages: dropped with a line in the log.

Celery's Redis transport ends the worker's consumer on what is not its JSON, and the worker starts anew; who
can write to the queue's list could so keep it from ever working. A lost message costs nothing here: the
ledger has the job, and the reaper sends its hint again. What the consumer itself raises is not caught.
"""

import logging
from collections.abc import Callable
from functools import wraps
from queue import Empty
from typing import Any

from kombu.transport import redis
from kombu.transport.redis import Channel
from kombu.transport.virtual import Message

logger = logging.getLogger(__name__)

#: What reading an envelope raises that is none.
_NO_ENVELOPE = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)


class _NoMessageError(ValueError):
    """What was read is not a message."""


class _Envelope(Message):  # type: ignore[misc]  # kombu has no types
    """A message whose parts are what the transport and Celery take them for."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **options)
            info, headers = self.delivery_info, self.headers
            texts = [self.delivery_tag, info["exchange"], info["routing_key"]]
            texts += [self.content_type, self.content_encoding]
            texts += [headers[name] for name in ("task", "id") if "task" in headers]
            for text in texts:
                text.encode()
        except _NO_ENVELOPE as error:
            raise _no_message(error) from error


def drop_what_is_no_message() -> None:
    """Has kombu's Redis channels of this process do so; called once more, it changes nothing."""
    if Channel.Message is not _Envelope:
        Channel.Message = _Envelope
        redis.loads = _loads(redis.loads)
        for name in ("_brpop_read", "_get"):
            setattr(Channel, name, _tolerant(getattr(Channel, name)))


def _loads(loads: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(loads)
    def parsed(*arguments: Any, **options: Any) -> Any:
        try:
            return loads(*arguments, **options)
        except _NO_ENVELOPE as error:
            raise _no_message(error) from error

    return parsed


def _tolerant(read: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(read)
    def tolerant(channel: Channel, *arguments: Any, **options: Any) -> Any:
        try:
            return read(channel, *arguments, **options)
        except _NoMessageError as error:
            logger.warning("dropped a message that cannot be read: %.200s", error)
            raise Empty from error

    return tolerant


def _no_message(error: Exception) -> _NoMessageError:
    return _NoMessageError(f"{type(error).__name__}: {error}")
