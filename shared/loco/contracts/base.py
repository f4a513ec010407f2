"""The base of every model that crosses a process boundary."""

from pydantic import BaseModel, ConfigDict


class Contract(BaseModel):
    """A frozen value object that refuses unknown fields (strict on writes)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
