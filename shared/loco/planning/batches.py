"""How many tokens the forward passes of a run take, from how long its rows are.

Rows are dealt to optimizer steps at random and sorted by length within one, so a pass of a few
rows holds neighbours: the longest rows of a step come together.
"""

import math
from statistics import NormalDist

from loco.contracts.plans import Lengths
from loco.contracts.specs import PreferenceSpec, TrainSpec
from loco.planning.ways import WayLike

_NORMAL = NormalDist()
#: Standard deviations from the mean to the 95th percentile.
_P95 = _NORMAL.inv_cdf(0.95)


def total_steps(spec: TrainSpec, rows: int) -> int:
    """Optimizer steps on so many rows; an epoch's last step may have fewer of them."""
    steps = max(1, math.ceil(spec.epochs * math.ceil(rows / spec.step_rows)))
    return min(steps, spec.max_steps) if spec.max_steps else steps


def all_steps(spec: TrainSpec, lengths: Lengths) -> int:
    """Optimizer steps of the whole run, those on pairs among them."""
    steps = total_steps(spec, lengths.rows)
    if spec.preference and lengths.pairs:
        steps += total_steps(of_pairs(spec, spec.preference), lengths.pairs.rows)
    return steps


def of_pairs(spec: TrainSpec, given: PreferenceSpec) -> TrainSpec:
    """The part on pairs as a recipe of rows: a pair is two, in one pass, with no dropout.

    Memory, seconds, steps and rates follow from it as from any recipe.
    """
    return spec.model_copy(
        update={
            "learning_rate": given.learning_rate,
            "epochs": given.epochs,
            "batch_size": 2 * given.batch_size,
            "gradient_accumulation": 1,
            "micro_batch": None,
            "lora": spec.lora.model_copy(update={"dropout": 0.0}),
            "preference": None,
        }
    )


def tokens_a_pass(way: WayLike, spec: TrainSpec, lengths: Lengths) -> float:
    """Mean tokens computed in a forward pass, padding included."""
    micro_batch = min(way.micro_batch, lengths.rows)
    if way.padding_free or micro_batch == 1:
        return micro_batch * lengths.mean
    # Mean of the longest of n normally distributed rows, in deviations (Blom 1958); neighbours in a
    # step sorted by length differ less, by about the root of the part of the step that a pass is.
    longest = _NORMAL.inv_cdf((micro_batch - 0.375) / (micro_batch + 0.25))
    spread = _deviation(lengths) * longest * math.sqrt(micro_batch / spec.step_rows)
    return micro_batch * min(lengths.mean + spread, lengths.longest)


def largest_pass(way: WayLike, spec: TrainSpec, lengths: Lengths) -> float:
    """Tokens of the largest forward pass that is to be expected in a run."""
    micro_batch = min(way.micro_batch, lengths.rows)
    if not way.padding_free:
        return micro_batch * lengths.longest
    passes = total_steps(spec, lengths.rows) * spec.step_rows // way.micro_batch
    deviation = _deviation(lengths)
    typical = lengths.mean + deviation * _upper_mean(micro_batch / spec.step_rows)
    with_longest = lengths.longest + (micro_batch - 1) * typical
    spread = math.sqrt(2 * math.log(max(passes, 2)) * micro_batch) * deviation
    return min(
        max(with_longest, micro_batch * lengths.mean + spread), micro_batch * lengths.longest
    )


def cut(lengths: Lengths, longest: int) -> Lengths:
    """The lengths of the same rows, cut at so many tokens."""
    mean = min(lengths.mean, longest)
    part = mean / lengths.mean
    return Lengths(
        rows=lengths.rows,
        tokens=max(1, round(lengths.tokens * part)),
        answer_tokens=max(1, round(lengths.answer_tokens * part)),
        p50=min(lengths.p50, longest),
        p95=min(lengths.p95, longest),
        longest=min(lengths.longest, longest),
        pairs=lengths.pairs and cut(lengths.pairs, longest),
    )


def _deviation(lengths: Lengths) -> float:
    """Standard deviation of the rows, from their 95th percentile."""
    return max(0.0, lengths.p95 - lengths.mean) / _P95


def _upper_mean(part: float) -> float:
    """Mean of the largest part of a normal distribution, in deviations above its mean."""
    if part >= 1:
        return 0.0
    return _NORMAL.pdf(_NORMAL.inv_cdf(1 - part)) / part
