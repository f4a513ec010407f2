"""Somebody puts what is no message on the queue's list.

A message that was no JSON ended the worker's consumer, and the worker started anew, each time.
"""

import base64
import json
import pickle

import pytest
import redis
from celery import Celery
from kombu.exceptions import ContentDisallowed, DecodeError

from loco.contracts.stages import Stage
from loco.ledger.ledger import Hint, Ledger, broker_prefix
from loco.queue.celery_app import send_hint
from loco.settings import Settings

pytestmark = pytest.mark.redis


def envelope(body: bytes, content_type: str) -> str:
    """A message as kombu stores it."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": content_type,
            "headers": {},
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": "t",
                "delivery_info": {"exchange": "", "routing_key": "gpu"},
            },
        }
    )


GARBAGE = [
    "not JSON",
    "",
    "1",
    "[]",
    "{}",
    "null",
    '{"properties": 1}',
    "[" * 100_000,
    "9" * 5000,
    b"\xff\xfe",
    '"\\ud800"',
]


def test_it_is_dropped_and_the_next_message_taken(
    app: Celery, ledger: Ledger, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    queue_list = broker_prefix(ledger.namespace) + "gpu"
    with redis.Redis.from_url(str(settings.redis_url)) as raw:
        for item in GARBAGE:
            raw.lpush(queue_list, item)
        assert send_hint(app, Hint(job_id="j", stage=Stage.TRAIN))
        received: list[object] = []
        with app.connection_for_read() as connection, connection.channel() as channel:

            def take(body: object, message: object) -> None:
                received.append(body)
                message.ack()  # type: ignore[attr-defined]

            [queue] = [q for q in app.amqp.queues.values() if q.name == "gpu"]
            with connection.Consumer(
                [queue], channel=channel, callbacks=[take], accept=app.conf.accept_content
            ):
                for _ in range(10 * len(GARBAGE)):
                    if received:
                        break
                    try:
                        connection.drain_events(timeout=5)
                    except TimeoutError:
                        continue
        assert received
        assert raw.llen(queue_list) == 0
    assert caplog.text.count("was dropped") >= len(GARBAGE) - 3


class Ran:
    """Unpickled, it would say so."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("kind", ["application/x-python-serialize", "application/x-yaml", "text/x"])
def test_only_json_is_read(app: Celery, ledger: Ledger, settings: Settings, kind: str) -> None:
    queue_list = broker_prefix(ledger.namespace) + "gpu"
    with redis.Redis.from_url(str(settings.redis_url)) as raw:
        raw.lpush(queue_list, envelope(pickle.dumps(Ran()), kind))
    refused: list[BaseException] = []
    [queue] = [q for q in app.amqp.queues.values() if q.name == "gpu"]
    with app.connection_for_read() as connection, connection.channel() as channel:
        consumer = connection.Consumer(
            [queue],
            channel=channel,
            callbacks=[lambda *_: pytest.fail("it was read")],
            accept=app.conf.accept_content,
            on_decode_error=lambda _, error: refused.append(error),
        )
        with consumer:
            for _ in range(20):
                if refused:
                    break
                try:
                    connection.drain_events(timeout=5)
                except TimeoutError:
                    continue
    assert isinstance(refused[0], ContentDisallowed | DecodeError)
