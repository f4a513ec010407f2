"""Messages that are no messages: dropped with a line in the log.

Celery's Redis transport ends the worker's consumer on what is not its JSON, and the worker starts anew; who
can write to the queue's list could so keep it from ever working. A lost message costs nothing here: the
ledger has the job, and the reaper sends its hint again.
"""

import logging
from collections.abc import Callable
from functools import wraps
from queue import Empty
from typing import Any

from kombu.transport.redis import Channel

logger = logging.getLogger(__name__)

#: What reading an envelope raises that is none.
_NO_ENVELOPE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


def drop_what_is_no_message() -> None:
    """Has kombu's Redis channels of this process do so; called once more, it changes nothing."""
    for name in ("_brpop_read", "_get"):
        read = getattr(Channel, name)
        if not hasattr(read, "__wrapped__"):
            setattr(Channel, name, _tolerant(read))


def _tolerant(read: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(read)
    def tolerant(channel: Channel, *arguments: Any, **options: Any) -> Any:
        try:
            return read(channel, *arguments, **options)
        except _NO_ENVELOPE as error:
            logger.warning(
                "a message that is none was dropped: %s: %.200s", type(error).__name__, error
            )
            raise Empty from error

    return tolerant
