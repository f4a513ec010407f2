"""What eval measures, against what, and when the gate promotes."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.sources import ProblemSource

#: Seeds fit every generator here; numpy takes 32 bits.
LARGEST_SEED = 2**32 - 1


#: It names a file, too.
SetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Role(StrEnum):
    """What an eval set is for."""

    #: The one that decides.
    PRIMARY = "primary"
    #: Must not get worse by more than its allowance.
    GUARD = "guard"
    #: Measured and shown; decides nothing.
    SHOWN = "shown"


class Baseline(StrEnum):
    """What a candidate is compared with."""

    #: The base model as it is served.
    BASE = "base"
    #: The base model with the recipe's instruction as its system prompt.
    INSTRUCTED = "instructed"
    #: The base model through the export of this project: training apart from quantization.
    EXPORTED = "exported"
    #: The version that serves now.
    PROMOTED = "promoted"


class Verdict(StrEnum):
    """What the gate decides about a candidate."""

    #: Significantly better than the base on the primary set; promoted.
    BETTER = "better"
    #: Not shown to be better nor worse; promoted where the policy lets it.
    UNPROVEN = "unproven"
    #: Not promoted.
    REFUSED = "refused"


class ItemSource(Contract):
    """Where the problems of an eval set come from."""

    source: ProblemSource = Field(
        description="Rows of a file or hub dataset, a generator, or rows held back (`split`)."
    )
    count: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["all"] = Field(
        "all",
        description="How many problems to take, chosen by the seed. `all`: the whole split or file (not "
        "for generators).",
    )
    seed: int = Field(20_261_122, ge=0, le=LARGEST_SEED, description="Seed of the choice.")


class EvalSet(ItemSource):
    """A set of problems with its role."""

    role: Role = Field(Role.SHOWN, description="`primary` decides, `guard` must not get worse.")
    allowance: float = Field(
        0.05,
        ge=0,
        le=1,
        description="How much accuracy a guard may lose against the base or the promoted version.",
    )


class GateSpec(Contract):
    """The rule at the end of eval that promotes a candidate or refuses it."""

    policy: Literal["not_worse", "better", "always", "never"] = Field(
        "not_worse",
        description="`not_worse`: refused if a check failed, if it is significantly worse on "
        "the primary set or worse on a guard, or if it was not compared with the "
        "version that serves. `better`: the same, and promoted only if "
        "significantly better. `always`: refused only if a check failed. `never`: "
        "only people promote.",
    )
    max_p: float = Field(0.05, gt=0, lt=1, description="Largest p of a significant difference.")
    min_problems: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="With fewer primary problems nothing is proven: the verdict is `unproven` "
        "at best, and `refused` while another version serves.",
    )


class GateResult(Contract):
    """What the gate decided, and why."""

    verdict: Verdict = Field(description="`better`, `unproven` or `refused`.")
    policy: str = Field(
        description="The policy that was followed. `any`: not measured, because a check of register "
        "failed."
    )
    reasons: tuple[str, ...] = Field(description="The reasons, one sentence each.")
    advice: tuple[str, ...] = Field(
        (), description="What to try if it was refused or showed no gain."
    )
    by_hand: bool = Field(
        False,
        description="Refused only by policy `never`, so promoting it by hand needs no force.",
    )
    compared_version: int | None = Field(
        None,
        description="The promoted version it was compared with. Null: no version was promoted.",
    )
    problems: int = Field(
        0,
        description="Number of primary problems it was measured on. A verdict on fewer does not replace "
        "it.",
    )
