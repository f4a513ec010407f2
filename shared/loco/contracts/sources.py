"""Where rows and problems come from."""

from typing import Annotated, Literal

from pydantic import Field

from loco.contracts.base import Contract


class HuggingFaceSource(Contract):
    """Question/answer rows of a dataset on the Hugging Face hub."""

    kind: Literal["huggingface"] = Field(description="Rows of a hub dataset.")
    dataset: str = Field("openai/gsm8k", description="Dataset id.")
    config: str | None = Field("main", description="Configuration of the dataset.")
    split: str = Field("train", description="Split to read.")
    revision: str | None = Field(None, description="Commit, tag or branch; none: the newest.")


class JsonlSource(Contract):
    """A JSONL file on the server: GSM8K rows (`question`, `answer`) or chat rows (`conversations`)."""

    kind: Literal["jsonl"] = Field(description="Rows of a file.")
    path: str = Field(
        description="File, relative to the adapter's folder, or below one of LOCO_DATASET_DIRS."
    )


class ReasoningGymSource(Contract):
    """Generated problems of the reasoning-gym package, seeded, offline."""

    kind: Literal["reasoning-gym"] = Field(description="Generated problems.")
    tasks: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        {"gsm_symbolic": 1.0},
        min_length=1,
        description="Task name to weight in the mixture, e.g. `{gsm_symbolic: 1}`.",
    )


class ArithmeticSource(Contract):
    """Generated short problems with one-line worked answers, seeded, offline."""

    kind: Literal["arithmetic"] = Field(description="Generated short problems.")


Source = Annotated[
    HuggingFaceSource | JsonlSource | ReasoningGymSource | ArithmeticSource,
    Field(discriminator="kind"),
]
