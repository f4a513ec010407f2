"""What a user asks for: the body of `POST /jobs`, before a recipe fills in the rest, and of a replay."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, Field, field_validator

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_NAME
from loco.contracts.evaluation import LARGEST_SEED
from loco.contracts.paths import JobId
from loco.contracts.stages import Stage

ValueT = TypeVar("ValueT")

DEFAULT_PROFILE = "default"
#: Levels of mappings and lists in an override; a spec has four.
_DEEPEST = 20

Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=32),
]
METADATA = (
    "Labels of your own, which the server only stores. At most 32 keys of 64 characters, values "
    "of 512."
)


class RecipeRequest(Contract):
    """A recipe, and what to change in it."""

    adapter: str = Field(
        max_length=LONGEST_NAME, description="Name of an adapter.", examples=["math"]
    )
    profile: str = Field(
        DEFAULT_PROFILE,
        max_length=LONGEST_NAME,
        description="Profile of the recipe.",
        examples=["tiny"],
    )
    base_model: str | None = Field(
        None, max_length=LONGEST_NAME, description="Name of a base model of the catalog."
    )
    prepare: dict[str, Any] = Field(
        {}, max_length=100, description="Overrides of the prepare spec."
    )
    train: dict[str, Any] = Field({}, max_length=100, description="Overrides of the train spec.")
    export: dict[str, Any] = Field({}, max_length=100, description="Overrides of the export spec.")
    register_: dict[str, Any] = Field(
        {}, alias="register", max_length=100, description="Overrides of the register spec."
    )
    eval: dict[str, Any] = Field({}, max_length=100, description="Overrides of the eval spec.")
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="Seed for every stage that does not set one."
    )
    reuse: bool = Field(True, description="Reuse finished stages whose inputs match.")
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first.")
    not_before: AwareDatetime | None = Field(
        None,
        description="Start the job at this time, not earlier. With an offset (`Z`, `+01:00`), at most a "
        "year ahead.",
        examples=["2026-11-28T22:00:00+01:00"],
    )
    metadata: Metadata = Field({}, description=METADATA)

    @field_validator("prepare", "train", "export", "register_", "eval")
    @classmethod
    def _is_plain_json(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        return plain_json(overrides)


class JobRequest(RecipeRequest):
    """The body of `POST /jobs`."""

    stages: tuple[Stage, ...] | None = Field(
        None,
        max_length=len(Stage),
        description="Stages to run, one after the other. Null: all five.",
    )
    from_job: JobId | None = Field(
        None,
        description="Job whose outputs replace the stages left out. Null: the newest that fits.",
    )


class ReplayRequest(Contract):
    """The body of `POST /jobs/{id}/replay`. Everything else is as in the job."""

    promote: bool = Field(
        False,
        description="Let the gate promote the replay by the job's own policy, and publish its "
        "files as the adapter's. Without it neither happens. A replay of eval alone "
        "never promotes.",
    )
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first.")
    metadata: Metadata = Field({}, description=METADATA)


def plain_json(value: ValueT) -> ValueT:
    """The value itself. Python's JSON parser lets more through than JSON and UTF-8 can carry on.

    Raises:
        ValueError: it is such a value, or nested too deep.
    """
    if _is_deeper(value, _DEEPEST):
        raise ValueError(f"nested more than {_DEEPEST} levels deep")
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise ValueError(f"not plain JSON: {error}") from error
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(entry, levels - 1) for entry in inner)
