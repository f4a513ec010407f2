"""What every route that accepts work says of it: its key, its answer's headers, its errors."""

from typing import Annotated, Any

from fastapi import Header, Response

from loco.contracts.errors import (
    BodyTooLarge,
    Conflict,
    DataError,
    DiskFull,
    IdempotencyConflict,
    InvalidRequest,
    LocoError,
    NotFound,
    StageGap,
    UnknownAdapter,
    UnknownBaseModel,
    UnknownProfile,
)

#: What a recipe with overrides can be refused for.
SUBMISSION: tuple[type[LocoError], ...] = (
    UnknownAdapter,
    NotFound,
    InvalidRequest,
    UnknownProfile,
    UnknownBaseModel,
    StageGap,
    DataError,
    Conflict,
    IdempotencyConflict,
    BodyTooLarge,
    DiskFull,
)

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="A request with the same key and body returns the same job instead of "
        "making another. Keys are separate for each owner. 1 to 255 characters.",
        examples=["nightly-2026-11-22"],
        json_schema_extra={"minLength": 1, "maxLength": 255},
    ),
]


def accepted_with(noun: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry of a 202: headers that say where to poll, and whether the key was known."""
    return {
        202: {
            "headers": {
                "Location": {
                    "description": f"Where to poll the {noun}.",
                    "schema": {"type": "string"},
                },
                "Idempotency-Replayed": {
                    "description": f"`true` if an earlier request with this key made this {noun}.",
                    "schema": {"type": "string"},
                },
            }
        }
    }


def tell_accepted(response: Response, place: str, *, created: bool) -> None:
    """Sets the headers of a 202: where to poll, and whether the key was known."""
    response.headers["Location"] = place
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
