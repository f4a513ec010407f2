"""Somebody puts what is no message on the queue's list.

A message that was no JSON ended the worker's consumer, and the worker started anew, each time.
"""

import base64
import json
import pickle
from contextlib import suppress

import pytest
import redis
from celery import Celery
from kombu import Connection
from kombu.exceptions import ContentDisallowed, DecodeError

from loco.contracts.stages import Stage
from loco.ledger.ledger import Hint, Ledger, broker_prefix
from loco.queue.celery_app import send_hint
from loco.settings import Settings

pytestmark = pytest.mark.redis


def envelope(content: bytes, content_type: object, **more: object) -> str:
    """A message as kombu stores it."""
    return json.dumps(
        {
            "body": base64.b64encode(content).decode(),
            "content-encoding": "utf-8",
            "content-type": content_type,
            "headers": {},
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": "t",
                "delivery_info": {"exchange": "", "routing_key": "gpu"},
            },
        }
        | more
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
    '{"__type__": "decimal", "__value__": "x"}',
    envelope(b"[]", []),
    envelope(b"[]", "application/json", body=1),
    envelope(b"[]", "application/json", headers=["task"]),
    envelope(b"[]", "application/json", headers={"task": [], "id": "1"}),
    envelope(b"[]", "application/json", headers={"task": "loco.stage"}),
    *(
        envelope(b"[]", "application/json", properties=properties)
        for properties in (
            {"delivery_tag": "t"},
            {"delivery_tag": [], "delivery_info": {"exchange": "", "routing_key": "gpu"}},
            {"delivery_tag": "\ud800", "delivery_info": {"exchange": "", "routing_key": "gpu"}},
            {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": 1}},
        )
    ),
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
    assert (
        caplog.text.count("dropped a message") >= len(GARBAGE) - 1
    )  # Redis gives an empty one as none


def test_a_fault_of_our_own_is_not_taken_for_garbage(
    app: Celery, ledger: Ledger, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Before: what the consumer raised was logged as a message that is none, and lost in the log."""

    def fail(body: object, message: object) -> None:
        raise ValueError("our own fault")

    assert send_hint(app, Hint(job_id="j", stage=Stage.TRAIN))
    [queue] = [q for q in app.amqp.queues.values() if q.name == "gpu"]
    with app.connection_for_read() as connection, connection.channel() as channel:
        consumer = connection.Consumer(
            [queue], channel=channel, callbacks=[fail], accept=app.conf.accept_content
        )
        with consumer, pytest.raises(ValueError, match="our own fault"):
            drain(connection)
    assert "dropped a message" not in caplog.text


def drain(connection: Connection) -> None:
    """Takes one message, which has been sent."""
    for _ in range(20):
        with suppress(TimeoutError):
            connection.drain_events(timeout=5)
            return


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
