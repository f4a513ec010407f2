"""What the study of own answers trains: its arms and, chosen on other problems, the variants of `strong`."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import yaml

from loco.contracts.evaluation import Baseline
from loco.contracts.specs import BaseModelSpec, EvalSpec, PrepareSpec, TrainSpec
from programs import ROOT

#: The brief's hyperparameters, to the letter.
BRIEF: dict[str, Any] = {
    "lora": {"r": 16, "alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "learning_rate": 2e-4,
    "epochs": 3,
    "batch_size": 2,
    "gradient_accumulation": 4,
    "max_length": 1024,
}
WIDE: dict[str, Any] = {
    "lora": {"r": 16, "alpha": 32, "target_modules": "all-linear"},
    "learning_rate": 1e-4,
    "epochs": 2,
    "batch_size": 16,
    "gradient_accumulation": 1,
    "max_length": 1024,
}
#: What taught SmolLM2 most for its time (`linear-1e-3` of docs/learning.md).
SMALL: dict[str, Any] = WIDE | {"learning_rate": 1e-3, "epochs": 3, "max_length": 512}
DPO: dict[str, Any] = {
    "method": "dpo",
    "learning_rate": 3e-5,
    "beta": 0.1,
    "nll": 0.2,
    "epochs": 1,
    "batch_size": 16,
}
NUM_CTX = 1536
NUM_PREDICT = 1024
#: Requests on their way at once: as many as the study's server has slots.
PARALLEL = 384
#: The name under which the untrained models answer.
BASE = "base"
Model = Literal["capable", "small"]


@cache
def instruction() -> str:
    """The system prompt that asks for reasoning in words, as the recipe of math has it."""
    recipe = yaml.safe_load((ROOT / "adapters" / "math" / "adapter.yaml").read_text())
    return str(recipe["eval"]["instruction"])


@dataclass(frozen=True)
class Arm:
    """One way to build an adapter."""

    #: `prepare.source`, without the questions; None: GSM8K's own answers.
    own: dict[str, Any] | None
    examples: int
    train: dict[str, Any]
    #: `train.preference`; None: rows alone.
    preference: dict[str, Any] | None = None
    #: Pairs trained on, the first of the file; None: all.
    pairs: int | None = None
    #: An arm of the same seed that trains on the same rows alone: its adapter is gone on from, so that the
    #: rows are trained on once.
    rows_of: str | None = None
    #: An arm of the same seed whose adapter is asked for the pairs, as it is served; None: the base. No
    #: recipe can say that yet.
    pairs_of: str | None = None
    #: Which base.
    model: Model = "capable"
    #: An arm of the same seed that gives as many rows as this one may take.
    as_many_as: str | None = None


def _own(**more: Any) -> dict[str, Any]:
    return {
        "kind": "self",
        "samples": 4,
        "temperature": 0.8,
        "top_p": 0.95,
        "per_question": 2,
        "num_ctx": NUM_CTX,
        "num_predict": NUM_PREDICT,
        "parallel": PARALLEL,
        "instruction": instruction(),
        **more,
    }


#: Of `strong` and all its variants, so that they share one sampling run: the most pairs of any.
_PAIRS = 2000
_STRONG = Arm(_own(pairs=_PAIRS), 2000, WIDE, DPO, rows_of="strong-sft")


def _variant(pairs: int | None = None, **preference: Any) -> Arm:
    return replace(_STRONG, pairs=pairs, preference=DPO | preference)


#: Measured on the test problems with every seed, in this order.
ARMS: dict[str, Arm] = {
    "gold": Arm(None, 200, BRIEF),
    "default": Arm(_own(), 200, BRIEF),
    "default-plain": Arm(_own(instruction=None), 200, BRIEF),
}
#: Tried on the development problems with a seed of their own, in this order; the best one is measured on
#: the test problems, beside the first, which says what the pairs are worth.
VARIANTS: dict[str, Arm] = {
    "strong-sft": replace(_STRONG, preference=None, rows_of=None),
    "strong-1000-1e-5": _variant(1000, learning_rate=1e-5),
    "strong-1e-5": _variant(learning_rate=1e-5),
    "strong": _STRONG,
    "strong-1e-4": _variant(learning_rate=1e-4),
    "strong-2-epochs": _variant(epochs=2),
    "strong-again": replace(_STRONG, pairs_of="strong-sft"),
    "strong-nll-1": _variant(nll=1.0),
    "strong-1e-4-beta-0.3": _variant(learning_rate=1e-4, beta=0.3),
}
#: A base that is no coder, and weak.
SMALL_ARMS: dict[str, Arm] = {
    "small-self": Arm(_own(instruction=None), 7473, SMALL, model="small"),
    "small-gold": Arm(None, 7473, SMALL, model="small", as_many_as="small-self"),
}


def arm(name: str) -> Arm:
    """An arm by its name."""
    return (ARMS | VARIANTS | SMALL_ARMS)[name]


@dataclass(frozen=True)
class Scale:
    """How much of an arm is done: everything, or a rehearsal's part of it."""

    #: Most rows and most pairs; None: the arm's own.
    rows: int | None = None
    #: Most optimizer steps; None: the arm's own.
    max_steps: int | None = None
    parallel: int = PARALLEL
    num_predict: int = NUM_PREDICT


def prepare_spec(
    chosen: Arm, base: BaseModelSpec, questions: str, seed: int, rows: int | None, scale: Scale
) -> PrepareSpec:
    """Stage prepare of an arm.

    Args:
        chosen: the arm.
        base: the model that is asked.
        questions: the file of training problems.
        seed: of the choice of questions and of sampling.
        rows: rows to keep; None: the arm's own.
        scale: of a rehearsal.
    """
    source: dict[str, Any] = {"kind": "jsonl", "path": questions}
    if chosen.own is not None:
        own = dict(chosen.own)
        own |= {"parallel": scale.parallel, "num_predict": scale.num_predict}
        if scale.rows is not None and own.get("pairs"):
            own["pairs"] = scale.rows
        source = own | {"questions": source}
    return PrepareSpec.model_validate(
        {
            "source": source,
            "examples": min(rows or chosen.examples, scale.rows or chosen.examples),
            "seed": seed,
            # no arm trains or samples on a problem that it is measured or chosen by
            "eval_sets": {
                name: {"source": {"kind": "jsonl", "path": f"{name}.jsonl"}}
                for name in ("test", "dev")
            },
            "validation": 0,
            "base_model": base if chosen.own is not None else None,
        }
    )


def train_spec(chosen: Arm, base: BaseModelSpec, seed: int, scale: Scale) -> TrainSpec:
    """Stage train of an arm; the base in 16 bits."""
    spec = {**chosen.train, "base_model": base, "seed": seed, "load_in_4bit": False}
    if chosen.preference is not None:
        spec["preference"] = chosen.preference
    if scale.max_steps is not None:
        spec["max_steps"] = scale.max_steps
    return TrainSpec.model_validate(spec)


def eval_spec(base: BaseModelSpec, primary: str, shown: tuple[str, ...], scale: Scale) -> EvalSpec:
    """Stage eval: a primary set of problems and some that are shown, against base and instructed base."""
    roles = {primary: "primary"} | dict.fromkeys(shown, "shown")
    return EvalSpec.model_validate(
        {
            "base_model": base,
            "sets": {
                name: {"source": {"kind": "jsonl", "path": f"{name}.jsonl"}, "role": role}
                for name, role in roles.items()
            },
            "baselines": [Baseline.BASE, Baseline.INSTRUCTED],
            "instruction": instruction(),
            "num_ctx": NUM_CTX,
            "num_predict": scale.num_predict,
            "parallel": scale.parallel,
        }
    )
