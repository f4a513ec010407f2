"""The nouns of `POST /plan`: what is asked, and what a job would take."""

from typing import Literal

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_NAME
from loco.contracts.errors import ErrorBody
from loco.contracts.plans import Device, Lengths, Memory, Plan
from loco.contracts.requests import JobRequest
from loco.contracts.specs import BaseModelSpec
from loco.contracts.stages import Stage


class AskedDevice(Contract):
    """A device to plan for instead of the worker's: "what if I had an 8 GB card"."""

    name: str = Field(
        "GPU",
        max_length=LONGEST_NAME,
        description="Name of the GPU, or `cpu`.",
        examples=["RTX 3070"],
    )
    memory_gb: float = Field(gt=0, le=10_000, description="Memory of the device, 10^9 bytes.")
    compute_capability: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Compute capability of an NVIDIA GPU, e.g. 8.6. Null: taken from its name.",
    )


class PlanRequest(JobRequest):
    """The body of `POST /plan`: a job's, and optionally a device to plan for."""

    device: AskedDevice | None = Field(
        None, description="Device to plan for. Null: the device of the worker that would train."
    )


class BaseFit(Contract):
    """A base model of the catalog, and whether a device is large enough to train it."""

    name: str = Field(description="Name in the catalog, for `base_model` of a recipe or request.")
    object: str = Field("base_model", description="Always `base_model`.")
    parameters_billion: float = Field(description="Parameters, 10^9.")
    license: str | None = Field(None, description="Its license, as its publisher names it.")
    ollama: str = Field(description="Name of the base model in Ollama.")
    architecture: str | None = Field(None, description="`model_type` of its config.json.")
    smallest_card_gb: int | None = Field(
        None,
        description="Memory of the smallest card on which a recipe's defaults fit, as computed. "
        "Null: no card is large enough, or the model's shape is not known.",
    )
    fits: bool | None = Field(
        None, description="Whether they fit the device. Null: no device is known."
    )
    memory_gb: float | None = Field(
        None, description="Expected peak on the device, 10^9 bytes. Null: it does not fit."
    )
    download_gb: float | None = Field(
        None, description="Weights still to download, 10^9 bytes, computed."
    )
    error: ErrorBody | None = Field(
        None, description="Why the model's shape is not known, if it is not."
    )
    entry: BaseModelSpec | None = Field(
        None,
        description="The catalog's entry, without the shape: a laptop checks a recipe against it.",
    )


class Needs(Contract):
    """What a stage needs of the machine."""

    stage: Stage = Field(description="The stage.")
    ram_gb: float = Field(description="RAM, 10^9 bytes.")
    disk_gb: float = Field(description="Disk space it fills, 10^9 bytes, without downloads.")
    download_gb: float = Field(description="Weights still to download, 10^9 bytes.")


class StageTime(Contract):
    """How long a stage is expected to take."""

    stage: Stage = Field(description="The stage.")
    seconds: float | None = Field(None, description="Expected seconds. Null: not known.")
    basis: Literal["runs", "model", "unknown"] = Field(
        description="`runs`: measured in earlier runs. `model`: computed. `unknown`: neither."
    )
    runs: int = Field(0, description="Number of earlier runs behind the figure.")


class Alternative(Contract):
    """An alternative to the chosen plan."""

    name: str = Field(description="What this alternative is.")
    plan: Plan = Field(description="The plan of this alternative.")
    memory: Memory = Field(description="What its memory would be used for.")
    fits: bool = Field(description="Whether it fits with the margin.")
    times: float = Field(
        description="Time of an optimizer step, as a multiple of the chosen plan's."
    )


class Preview(Contract):
    """What a job would take: its plan, memory, disk and time."""

    adapter: str = Field(description="The adapter that would be built.")
    profile: str = Field(description="The profile of its recipe.")
    base_model: str = Field(description="The base model to train.")
    device: Device = Field(description="What it would train on.")
    device_from: str = Field(description="Where the device comes from.")
    lengths: Lengths = Field(description="Expected lengths of the training rows.")
    lengths_from: str = Field(description="Where the lengths come from.")
    total_steps: int = Field(description="Optimizer steps.")
    plan: Plan = Field(description="How it would be trained.")
    memory: Memory = Field(description="What the plan's memory is used for.")
    margin_gb: float = Field(description="Memory kept free above the expected peak, 10^9 bytes.")
    history_runs: int = Field(
        description="Number of earlier runs that corrected the plan's seconds."
    )
    alternatives: tuple[Alternative, ...] = Field(description="Alternatives, for comparison.")
    stages: tuple[StageTime, ...] = Field(description="Expected seconds, stage by stage.")
    total_seconds: float = Field(description="Sum over the stages whose seconds are known.")
    needs: tuple[Needs, ...] = Field(description="RAM and disk, stage by stage.")
    notes: tuple[str, ...] = Field(description="What else you should know before you submit.")
