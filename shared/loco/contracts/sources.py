"""Where rows and problems come from."""

from typing import Annotated, Literal

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import (
    LARGEST_CONTEXT,
    LONGEST_ANSWER,
    LONGEST_NAME,
    LONGEST_PATH,
    LONGEST_PROMPT,
)
from loco.contracts.datasets import ColumnMapping, Format


class HuggingFaceSource(Contract):
    """Question/answer rows of a dataset on the Hugging Face hub."""

    kind: Literal["huggingface"] = Field(description="Rows of a hub dataset.")
    dataset: str = Field(
        "openai/gsm8k",
        max_length=LONGEST_NAME,
        description="ID on the hub, owner/name. It must have json, jsonl, csv, parquet, arrow or text "
        "files.",
    )
    config: str | None = Field(
        "main", max_length=LONGEST_NAME, description="Configuration of the dataset."
    )
    split: str = Field("train", max_length=LONGEST_NAME, description="Split to read.")
    revision: str | None = Field(
        None, max_length=LONGEST_NAME, description="Commit, tag or branch. Null: the newest."
    )


class JsonlSource(Contract):
    """A JSONL file on the server; docs/recipes.md has the layouts of its rows."""

    kind: Literal["jsonl"] = Field(description="Rows of a file.")
    path: str = Field(
        max_length=LONGEST_PATH,
        description="File in the adapter's folder, or in one of LOCO_DATASET_DIRS.",
    )


class DatasetSource(Contract):
    """An uploaded data set (`loco data push`), as it is when the job is submitted."""

    kind: Literal["dataset"] = Field(description="Rows of an uploaded data set.")
    dataset: str = Field(
        min_length=1,
        max_length=LONGEST_NAME,
        description="ID of the data set, or a name for the newest one of that name.",
    )
    mapping: ColumnMapping | None = Field(
        None, description="Which column each field comes from. Null: as given at upload."
    )
    format: Format | None = Field(None, description="Kind of file. It follows from the data set.")

    @property
    def file(self) -> str:
        """What its frozen copy is called."""
        return self.dataset if self.format is None else f"{self.dataset}.{self.format}"


class ReasoningGymSource(Contract):
    """Generated problems of the reasoning-gym package, seeded, offline."""

    kind: Literal["reasoning-gym"] = Field(description="Generated problems.")
    tasks: dict[
        Annotated[str, Field(max_length=LONGEST_NAME)], Annotated[float, Field(gt=0, le=1_000_000)]
    ] = Field(
        {"gsm_symbolic": 1.0},
        min_length=1,
        max_length=200,
        description="Tasks and their weights in the mixture, e.g. `{gsm_symbolic: 1}`.",
    )


class ArithmeticSource(Contract):
    """Generated short problems with one-line worked answers, seeded, offline."""

    kind: Literal["arithmetic"] = Field(description="Generated short problems.")


#: Rows that are there, or that a generator makes.
GivenSource = Annotated[
    HuggingFaceSource | JsonlSource | DatasetSource | ReasoningGymSource | ArithmeticSource,
    Field(discriminator="kind"),
]


#: Source self asks no more questions after so many in a row that brought nothing…
FRUITLESS = 200
#: …and those of a generator, which have no end, at most so many times the rows or pairs wanted.
MOST_TIMES = 10


class SelfSource(Contract):
    """The base model's own answers, as it is served, to questions whose right answer is known.

    An answer counts when it ended by itself and the grader accepts it (RAFT, arXiv:2504.11343; STaR's
    rationalization with a hint, arXiv:2203.14465).
    """

    kind: Literal["self"] = Field(description="The base model's own verified answers.")
    questions: GivenSource = Field(description="Where the questions come from, with their answers.")
    samples: int = Field(
        4,
        ge=1,
        le=64,
        description="How often to ask a question: until it is solved, or exactly this often if pairs "
        "are wanted.",
    )
    temperature: float = Field(0.8, gt=0, le=2, description="Sampling temperature.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus sampling.")
    per_question: int = Field(
        2,
        ge=1,
        le=16,
        description="Different right answers to keep per question, at most. Second answers are "
        "used only when the questions run out.",
    )
    instruction: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_PROMPT,
        description="System prompt while sampling. Null: the served model's own.",
    )
    train_instruction: bool = Field(
        False,
        description="Keep the instruction in the training rows. Without it, the model learns to "
        "answer as if it had the instruction (context distillation, "
        "arXiv:2209.15189).",
    )
    hints: bool = Field(
        False,
        description="Ask unsolved questions again with the right answer as a hint. The rows do "
        "not contain the hint.",
    )
    fallback: Literal["gold", "drop"] = Field(
        "drop", description="What to use for questions that the base did not solve."
    )
    pairs: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Pairs of a right and a wrong answer to a question, for train.preference.",
    )
    num_ctx: int = Field(2048, ge=64, le=LARGEST_CONTEXT, description="Context in tokens.")
    num_predict: int = Field(
        1024, ge=1, le=LONGEST_ANSWER, description="Limit of generated tokens per answer."
    )
    parallel: Annotated[int, Field(ge=1, le=512)] | Literal["auto"] = Field(
        "auto",
        description="Questions sent at the same time. Those that the server cannot answer at once wait "
        "there.",
    )


#: Problems held back, at least: on fewer next to nothing can be shown.
FEWEST_HELD_BACK = 10


class SplitSource(Contract):
    """Rows of the training source, held back: never trained on, never validation rows."""

    kind: Literal["split"] = Field(description="Rows held back from `prepare.source`.")
    share: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="Share of the usable rows; 20 rows where that is fewer, and a third of them at most.",
    )
    most: int = Field(200, ge=FEWEST_HELD_BACK, le=10_000, description="Rows held back at most.")


#: Where problems come from.
ProblemSource = Annotated[
    HuggingFaceSource
    | JsonlSource
    | DatasetSource
    | ReasoningGymSource
    | ArithmeticSource
    | SplitSource,
    Field(discriminator="kind"),
]


Source = Annotated[
    HuggingFaceSource
    | JsonlSource
    | DatasetSource
    | ReasoningGymSource
    | ArithmeticSource
    | SelfSource,
    Field(discriminator="kind"),
]
