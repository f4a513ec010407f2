"""What the study compares, and where its files lie."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loco.contracts.specs import BaseModelSpec, PrepareSpec, TrainSpec
from loco.recipes.catalog import load_catalog
from loco_worker.sources.rows import row_of
from programs import ROOT

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
#: The name under which the untrained model answers.
BASE = "base"
#: The study's own benchmark: GSM8K's test problems, so that prepare keeps them out of training.
BENCHMARK = "gsm8k_test.jsonl"


@dataclass(frozen=True)
class Recipe:
    """One way to train; each differs from another one in a single thing."""

    targets: tuple[str, ...] | Literal["all-linear"]
    r: int
    learning_rate: float
    epochs: float

    def spec(self, base: BaseModelSpec, rows: int, max_steps: int | None) -> TrainSpec:
        """The train stage's spec: `rows` rows an optimizer step, the base held in 16 bits."""
        return TrainSpec.model_validate(
            {
                "base_model": base,
                "load_in_4bit": False,
                # updates are scaled by alpha / r: 2 as in the default recipe, whatever the rank
                "lora": {"r": self.r, "alpha": 2 * self.r, "target_modules": self.targets},
                "learning_rate": self.learning_rate,
                "epochs": self.epochs,
                "max_steps": max_steps,
                "batch_size": rows,
                "gradient_accumulation": 1,
                "max_length": 512,
            }
        )


#: By name, the most telling first: a study that runs out of time has measured those.
RECIPES: dict[str, Recipe] = {
    "attention": Recipe(ATTENTION, 16, 2e-4, 3),  # what a recipe trains unless it says otherwise
    "linear-1e-3": Recipe("all-linear", 16, 1e-3, 3),
    "linear": Recipe("all-linear", 16, 2e-4, 3),
    "linear-1e-3-r64": Recipe("all-linear", 64, 1e-3, 3),
    "linear-1e-3-1-epoch": Recipe("all-linear", 16, 1e-3, 1),
    "attention-1e-3": Recipe(ATTENTION, 16, 1e-3, 3),
}


@dataclass(frozen=True)
class Study:
    """A run of the study: its options and its folder."""

    out: Path
    gsm8k: Path
    models: Path
    #: Rows an optimizer step.
    rows: int
    #: Training rows and test problems to use; None: all.
    examples: int | None
    problems: int | None
    #: Stop training after so many optimizer steps; None: the recipe's epochs.
    max_steps: int | None

    @property
    def base(self) -> BaseModelSpec:
        """SmolLM2-135M-Instruct as the catalog has it."""
        return load_catalog(ROOT / "adapters")["smollm2-135m-instruct"]

    @property
    def training_data(self) -> Path:
        """What prepare writes."""
        return self.out / "prepare" / "training_data.jsonl"

    @property
    def test_data(self) -> Path:
        """GSM8K's test problems as chat rows, to measure the loss on their worked answers."""
        return self.out / "test_data.jsonl"

    def home(self, name: str) -> Path:
        """The folder of what is worth keeping of a model: adapter, results, answers. It is small."""
        return self.out / "home" / name

    def answers(self, name: str, source: Literal["hf", "gguf"]) -> Path:
        """The answers of one model, a line each."""
        return self.home(name) / f"answers-{source}.jsonl"

    def prepare_spec(self) -> PrepareSpec:
        """All training rows but those that overlap a test problem."""
        rows = sum(1 for line in self.train_file.open() if line.strip())
        return PrepareSpec.model_validate(
            {
                "source": {"kind": "jsonl", "path": str(self.train_file)},
                "examples": min(rows, self.examples or rows),
                "eval_sets": {"benchmark": {"source": {"kind": "jsonl", "path": BENCHMARK}}},
                "validation": 0,
            }
        )

    @property
    def train_file(self) -> Path:
        """GSM8K's training rows."""
        return self.gsm8k / "train.jsonl"

    def test_problems(self) -> list[dict[str, str]]:
        """GSM8K's test problems: `id` (line number), `question`, `answer` (the number)."""
        return [
            {
                "id": str(number),
                "question": problem["question"],
                "answer": problem["answer"].rpartition("####")[2].strip(),
            }
            for number, problem in enumerate(self._tests(), 1)
        ]

    def write_test_data(self) -> Path:
        """Writes `test_data`, unless it is there."""
        if not self.test_data.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            rows = [row_of(number, problem) for number, problem in enumerate(self._tests(), 1)]
            lines = [json.dumps({"conversations": row.conversations}) + "\n" for row in rows]
            self.test_data.write_text("".join(lines))
        return self.test_data

    def _tests(self) -> list[dict[str, str]]:
        lines = (self.gsm8k / "test.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.strip()][: self.problems]
