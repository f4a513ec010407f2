"""Versions: the registered candidates of an adapter, numbered, with their lineage and scores."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_PATH
from loco.contracts.evaluation import GateResult
from loco.contracts.serving import ServedBase


class DataRecord(BaseModel):
    """What a version was trained on."""

    source: str | None = Field(None, description="The source, in words.")
    rows: int | None = Field(None, description="Training rows.")
    sha256: str | None = Field(None, description="SHA-256 of training_data.jsonl.")


class VersionEvent(BaseModel):
    """Something that happened to a version: the audit trail."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime = Field(description="When.")
    action: str = Field(
        description="`registered`, `measured`, `promoted`, `not_promoted`, `refused`, `replaced`, "
        "`rolled_back`, `restored`."
    )
    by: str = Field(description="`register`, `gate`, the name of an API key, or `local`.")
    reason: str | None = Field(None, description="The reason, as given by whoever did it.")
    forced: bool = Field(False, description="Whether it overruled a refusal.")


class CandidateVersion(Contract):
    """The version that eval measures."""

    version: int = Field(ge=1, description="Its number.")
    candidate: str = Field(description="`MODEL:JOB_ID` in Ollama.")
    digest: str = Field(description="Digest of the candidate in Ollama.")
    blob: str | None = Field(None, description="`sha256:…` of the uploaded GGUF. Null: not known.")


class PromotedVersion(CandidateVersion):
    """The version of a model that serves now, for eval to compare with."""


class Pointer(Contract):
    """What `MODEL:latest` should point to, and what it was last seen to point to."""

    model: str = Field(description="Name in Ollama, without tag.")
    adapter: str = Field(description="The adapter whose version it is.")
    version: int = Field(description="Its number.")
    candidate: str = Field(description="`MODEL:JOB_ID` in Ollama.")
    digest: str = Field(description="Digest of the candidate.")
    serial: int = Field(description="Counts the promotions of all models.")
    served_at: datetime | None = Field(
        None,
        description="When `MODEL:latest` in Ollama was seen to be this version. Null: not yet.",
    )
    served_digest: str | None = Field(
        None, description="The digest of `MODEL:latest` at that time."
    )

    @property
    def latest(self) -> str:
        """The name that people use."""
        return f"{self.model}:latest"


class Promotion(Contract):
    """Whether the version that a job registered or measured was promoted."""

    version: int = Field(description="Its number.")
    model: str = Field(description="Name in Ollama, without tag.")
    promoted: bool = Field(description="Whether `MODEL:latest` should be this version.")
    serving: int | None = Field(None, description="The version that is promoted after the job.")
    reason: str | None = Field(None, description="The reason, in words.")


class Restored(Contract):
    """A version that was made again in Ollama from its GGUF."""

    version: int = Field(description="Its number.")
    model: str = Field(description="Name in Ollama, without tag.")
    candidate: str = Field(description="`MODEL:JOB_ID` in Ollama.")
    promoted: bool = Field(description="Whether `MODEL:latest` is this version.")
    created: bool = Field(description="False: Ollama already had it, unchanged.")
    digest: str = Field(description="Its digest in Ollama.")
    previous_digest: str = Field(description="The digest it was registered with.")
    warnings: tuple[str, ...] = Field(
        (),
        description="What could not be checked, or is known about the server, one sentence each.",
    )


class Version(BaseModel):
    """One model that was registered."""

    # stored data is read tolerantly: a newer program may have written more
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    version: int = Field(0, description="Number of the version, from 1 for each adapter.")
    job: str = Field(description="The job that built it.")
    model: str = Field(description="Name in Ollama, without tag.")
    candidate: str = Field(description="`MODEL:JOB_ID`, which never changes.")
    profile: str | None = Field(None, description="Profile of the job that built it.")
    promoted: bool = Field(False, description="Whether `MODEL:latest` should point to it.")
    served_at: datetime | None = Field(
        None, description="For the promoted version: when `MODEL:latest` was verified to be it."
    )
    past: tuple[int, ...] = Field(
        (),
        description="For the promoted version: the versions promoted before it. A rollback "
        "returns to the last in the list.",
    )
    rolled_back: bool = Field(
        False, description="Whether it was rolled back. The gate does not promote it again."
    )
    gate: GateResult | None = Field(
        None, description="What the gate decided, once eval has run or a check of register failed."
    )
    events: tuple[VersionEvent, ...] = Field(
        (),
        description="What happened to it (registered, promoted, refused, rolled back), oldest first.",
    )
    missing: bool = Field(
        False,
        description="Whether Ollama no longer has its model. Only lists of versions say so, and only "
        "if Ollama answers.",
    )
    base_model: str = Field(description="Name in the catalog of base models.")
    base_ollama: str = Field(description="Name of the base model in Ollama.")
    quantization: str = Field(description="GGUF file type.")
    digest: str = Field(description="Digest of the candidate in Ollama.")
    blob: str = Field(description="`sha256:…` of the GGUF that was uploaded.")
    gguf: str = Field(
        max_length=4 * LONGEST_PATH, description="The GGUF, relative to the adapters folder."
    )
    size_bytes: int = Field(description="Size of the GGUF.")
    format: str = Field(
        "merged", description="`merged`: the GGUF is the whole model; `adapter`: a LoRA on `base`."
    )
    base: ServedBase | None = Field(
        None, description="The base that serves the adapter. Null for a merged model."
    )
    base_digest: str | None = Field(None, description="Digest of that base in Ollama.")
    system: str | None = Field(None, description="System prompt of training and serving.")
    parameters: dict[str, Any] = Field({}, description="Ollama parameters, e.g. `temperature`.")
    data: DataRecord = Field(DataRecord(), description="What it was trained on.")
    hyperparameters: dict[str, Any] = Field({}, description="The train spec.")
    training: dict[str, Any] = Field({}, description="Engine, steps, losses, seconds.")
    scores: dict[str, Any] | None = Field(None, description="Scores by set, once eval has run.")
    registered_at: str = Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"),
        description="When it was registered, ISO 8601.",
    )
