"""Errors: stable codes, and the same class on both ends of the wire."""

import pytest

from loco.contracts import errors
from loco.contracts.errors import LocoError, StageGap, from_payload


def every_class(cls: type[LocoError] = LocoError) -> list[type[LocoError]]:
    return [cls, *(s for c in cls.__subclasses__() for s in every_class(c))]


def test_codes_are_unique_and_errors_say_what_they_are() -> None:
    classes = [c for c in every_class() if c.__module__ == errors.__name__]
    codes = [c.code for c in classes]
    assert len(set(codes)) == len(codes)
    assert all(c.__doc__ for c in classes)
    assert all(400 <= c.status < 600 for c in classes)


@pytest.mark.parametrize("cls", [c for c in every_class() if c.__module__ == errors.__name__])
def test_an_error_is_the_same_after_the_wire(cls: type[LocoError]) -> None:
    sent = cls("It broke.", param="x", hint="Mend it.")
    received = from_payload({"error": sent.body.model_dump()}, fallback="?")
    assert type(received) is cls
    assert received.body == sent.body


@pytest.mark.parametrize("payload", [None, [], "x", {}, {"error": "x"}, {"error": None}])
def test_answers_of_others_become_the_fallback(payload: object) -> None:
    error = from_payload(payload, fallback="HTTP 502")
    assert (type(error), error.message) == (LocoError, "HTTP 502")


def test_unknown_codes_are_kept_readable() -> None:
    error = from_payload({"error": {"code": "new", "message": "m", "hint": "h"}}, fallback="?")
    assert (type(error), error.message, error.hint) == (LocoError, "m", "h")


def test_kinds_can_be_caught_together() -> None:
    assert issubclass(StageGap, errors.InvalidRequest)
    assert errors.RedisUnavailable.retryable
    assert not errors.RedisUnavailable.user_fault
