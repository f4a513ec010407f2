"""What earlier tries teach the planner about memory, and that nothing else changes."""

from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import OutOfMemory
from loco.contracts.plans import Device, Lengths, Plan, PlanAttempt, Shape
from loco.contracts.requests import JobRequest
from loco.contracts.specs import PreferenceSpec, TrainSpec
from loco.planning.lessons import Lessons
from loco.planning.planner import make_plan, margin_gb, next_rung
from loco.recipes.catalog import load_catalog
from loco.recipes.resolve import resolve

ADAPTERS = Path(__file__).parents[2] / "adapters"
QWEN = Shape.of(load_catalog(ADAPTERS)["qwen3-4b"].config or {})
ROWS = Lengths(rows=200, tokens=32_974, answer_tokens=18_200, p50=156, p95=268, longest=380)


def card(free_gb: float, name: str = "RTX 3090") -> Device:
    return Device(name=name, memory_gb=24, free_gb=free_gb, compute_capability=8.6)


def recipe(**train: object) -> TrainSpec:
    return resolve(ADAPTERS, JobRequest.model_validate({"adapter": "math", "train": train})).train


def plan(device: Device, *tried: PlanAttempt, **train: object) -> Plan:
    lessons = Lessons(tried)
    return make_plan(recipe(**train), QWEN, ROWS, device, engine="peft", lessons=lessons)


def attempt(of: Plan, peak_gb: float, outcome: str = "finished", **changed: object) -> PlanAttempt:
    return PlanAttempt(
        plan=of.model_copy(update=changed),
        first_step=1,
        last_step=75,
        peak_memory_gb=peak_gb,
        outcome=outcome,  # type: ignore[arg-type]
    )


def test_a_plan_says_what_it_was_made_for():
    made = plan(card(20))
    assert (made.device, made.free_gb, made.memory_factor) == ("RTX 3090", 20, 1.0)


def test_the_peak_of_earlier_runs_corrects_the_model():
    pins = {"load_in_4bit": True, "micro_batch": 2, "gradient_checkpointing": True}
    first = plan(card(20), **pins)
    second = plan(card(20), attempt(first, 1.2 * first.memory_gb), **pins)
    assert second.memory_gb == pytest.approx(1.2 * first.memory_gb, rel=0.001)
    assert second.memory_factor == pytest.approx(1.2)
    # what was expected then held the lesson already: it is not learnt twice
    third = plan(card(20), attempt(second, second.memory_gb), **pins)
    assert third.memory_gb == pytest.approx(second.memory_gb, rel=0.001)
    assert plan(card(20, "RTX 4090"), attempt(first, 9), **pins).memory_gb == first.memory_gb
    assert plan(card(20), attempt(first, 0), **pins).memory_gb == first.memory_gb
    tries = [attempt(first, gb * first.memory_gb) for gb in (1.1, 3.0, 1.2)]
    assert plan(card(20), *tries, **pins).memory_factor == pytest.approx(1.2)


def test_what_the_model_underestimates_is_not_chosen_again():
    first = plan(card(20))
    second = plan(card(20), attempt(first, 1.6 * first.memory_gb))
    assert second != first
    assert second.memory_gb + margin_gb(second.memory_gb, card(20)) <= 20


def test_a_plan_that_ran_out_is_not_tried_again_on_that_card_nor_a_larger_one():
    first = plan(card(20))
    failed = attempt(first, 20, "out_of_memory")
    second = plan(card(20), failed)
    assert second.memory_gb < first.memory_gb
    assert plan(card(19), failed).memory_gb < first.memory_gb  # less is free than then
    assert plan(card(20, "RTX 4090"), failed).memory_gb == first.memory_gb
    # another program has ended meanwhile
    assert plan(card(24), failed).memory_gb >= first.memory_gb
    third = plan(card(20), failed, attempt(second, 20, "out_of_memory"))
    assert third.memory_gb < second.memory_gb


def test_a_part_of_a_run_never_lowers_what_is_expected():
    first = plan(card(20))
    late = attempt(first, 10.2).model_copy(update={"first_step": 75})
    early = attempt(first, 14.9, "stopped").model_copy(update={"last_step": 74})
    assert plan(card(12), late) == plan(card(12))  # of a smaller plan, after memory ran out
    resumed = plan(card(20), late, early, micro_batch=8, gradient_checkpointing=False)
    assert resumed.memory_gb == pytest.approx(14.9, rel=0.001)
    assert plan(card(12), late, early).precision == "4bit"
    # steps of another run are no part of this one
    other = early.model_copy(update={"last_step": 60})
    assert plan(card(12), late, other) == plan(card(12))
    higher = late.model_copy(update={"peak_memory_gb": 1.2 * first.memory_gb})
    assert Lessons((higher,)).factor(first, card(20)) == pytest.approx(1.2)


def test_no_measured_peak_brings_a_plan_below_its_weights():
    pins = {"load_in_4bit": False, "micro_batch": 8, "gradient_checkpointing": False}
    first = plan(card(20), **pins)
    again = plan(card(20), attempt(first, 0.4), **pins)
    assert 8 < again.memory_gb < first.memory_gb  # 4.0 billion parameters, of 2 bytes


def test_a_run_out_is_forgotten_once_as_much_has_finished_in_the_memory_of_then():
    first = plan(card(20))
    failed = attempt(first, 20, "out_of_memory")
    modelled = first.memory_gb / first.memory_factor
    fine = attempt(first, first.memory_gb, free_gb=23.0)
    assert not Lessons((fine, failed)).ran_out(first, modelled, card(20))
    for since in (
        attempt(first, 21, free_gb=23.0),  # it took what was not free then
        attempt(first, 5, rows_gb=0.5 * first.memory_gb),
        fine.model_copy(update={"first_step": 75}),
        fine.model_copy(update={"outcome": "stopped"}),
    ):
        assert Lessons((since, failed)).ran_out(first, modelled, card(20))
    assert Lessons((failed, fine)).ran_out(first, modelled, card(20))  # the run-out is newer


@pytest.mark.parametrize("factor", [0.6, 0.95, 1.0, 1.07, 1.2])
def test_a_run_out_is_recognised_whatever_was_learnt_before(factor: float):
    first = plan(card(20))
    for thousandths in range(200):
        modelled = first.memory_gb + thousandths / 1000
        expected = round(modelled + round(modelled * (factor - 1), 4), 3)
        stored = {
            "memory_gb": expected,
            "memory_factor": factor,
            "rows_gb": None,
        }  # as once recorded
        failed = attempt(first, 0, "out_of_memory", **stored)
        assert Lessons((failed,)).ran_out(first, modelled, card(20))


def test_where_everything_ran_out_the_smallest_is_tried_before_a_refusal():
    least = plan(card(4.5), load_in_4bit=True, micro_batch=1, gradient_checkpointing=True)
    failed = attempt(least, 4, "out_of_memory", rows_gb=0.1, free_gb=20.0)
    assert plan(card(20), failed).gradient_checkpointing
    with pytest.raises(OutOfMemory):
        plan(card(2), failed)


def test_the_last_rung_of_a_gpu_holds_the_base_in_4_bits():
    floor = {"micro_batch": 1, "gradient_checkpointing": True, "cuda_graphs": False}
    wide = plan(card(20)).model_copy(update=floor | {"accumulation": 8, "precision": "bf16"})
    below = next_rung(wide, recipe(), QWEN, ROWS, card(20))
    assert below is not None
    assert (below.precision, below.micro_batch, below.gradient_checkpointing) == ("4bit", 2, True)
    assert below.free_gb == wide.free_gb
    assert next_rung(wide, recipe(load_in_4bit=False), QWEN, ROWS, card(20)) is None
    on_cpu = Device(name="cpu", memory_gb=20, free_gb=20)
    assert (
        next_rung(wide.model_copy(update={"precision": "fp32"}), recipe(), QWEN, ROWS, on_cpu)
        is None
    )


FULL = Lengths(rows=200, tokens=200 * 1023, answer_tokens=120_000, p50=1023, p95=1023, longest=1023)
LONGER = Lengths(rows=600, tokens=180_000, answer_tokens=120_000, p50=300, p95=430, longest=500)


def with_pairs(*tried: PlanAttempt, batch_size: int = 4, pairs: Lengths = LONGER) -> Plan:
    """On an 80 GB card, in 16 bits: rows in passes of 16, pairs in passes of four."""
    pins = {"load_in_4bit": False, "batch_size": 16, "gradient_accumulation": 1}
    spec = recipe(**pins).model_copy(
        update={"preference": PreferenceSpec(batch_size=batch_size, learning_rate=5e-6)}
    )
    lengths = LONGER.model_copy(update={"pairs": pairs})
    device = Device(name="H100", memory_gb=80, free_gb=79, compute_capability=9.0)
    return make_plan(spec, QWEN, lengths, device, engine="peft", lessons=Lessons(tried))


def on_pairs(of: Plan, peak_gb: float, outcome: str = "finished", **steps: int) -> PlanAttempt:
    steps = {"first_step": 1, "last_step": 249, "pairs_from": 200} | steps
    return attempt(of, peak_gb, outcome).model_copy(update=steps)


def test_a_run_out_on_pairs_teaches_of_pairs_alone():
    first = with_pairs()
    assert (first.micro_batch, first.pairs) == (16, 4)
    assert (first.pairs_gb or 0) < (first.rows_gb or 0)
    failed = on_pairs(first, 75, "out_of_memory")
    fewer = first.model_copy(update={"pairs": 2})
    went_on = on_pairs(fewer, 60, first_step=250, last_step=400)
    for tried in ([failed], [went_on, failed]):
        second = with_pairs(*tried)
        assert (second.micro_batch, second.pairs) == (16, 2)
        assert second.rows_gb == first.rows_gb
    third = with_pairs(went_on, on_pairs(second, 75, "out_of_memory"), failed)
    assert (third.micro_batch, third.pairs) == (16, 1)
    # the reference, before the first of their steps, is of the pairs; the step before is of the rows
    reference = on_pairs(first, 75, "out_of_memory", last_step=199)
    assert (with_pairs(reference).micro_batch, with_pairs(reference).pairs) == (16, 2)
    rows = with_pairs(on_pairs(first, 75, "out_of_memory", last_step=198))
    assert rows.micro_batch < 16
    assert rows.pairs == 4


def test_a_run_out_on_rows_is_recognised_where_pairs_are_the_larger():
    long: dict[str, Any] = {"batch_size": 8, "pairs": FULL}
    first = with_pairs(**long)
    assert (first.pairs_gb or 0) > (first.rows_gb or 0) > 0
    failed = on_pairs(first, 75, "out_of_memory", last_step=20)
    second = with_pairs(failed, **long)
    assert second.rows_gb is not None
    assert second.rows_gb < (first.rows_gb or 0)
    assert second.pairs == first.pairs


def test_pairs_that_ran_out_are_taken_again_once_they_finished_in_the_memory_of_then():
    first = with_pairs()
    failed = on_pairs(first, 75, "out_of_memory")
    fine = on_pairs(first, 70, last_step=400)
    assert with_pairs(fine, failed).pairs == 4
    assert with_pairs(on_pairs(first, 70, first_step=250, last_step=400), failed).pairs == 2
    # rows alone say nothing of it
    alone = first.model_copy(update={"pairs": None, "pairs_gb": None})
    assert with_pairs(attempt(alone, 70), failed).pairs == 2


def test_what_pairs_took_is_no_lesson_for_rows():
    first = with_pairs()
    more = on_pairs(first, 2 * (first.pairs_gb or 0), first_step=200, last_step=400)
    second = with_pairs(more)
    assert second.micro_batch == first.micro_batch
    assert second.rows_gb == first.rows_gb
    larger = on_pairs(first, 1.5 * first.memory_gb, first_step=200, last_step=400)
    assert Lessons((larger,)).factor(first, card(79, "H100")) == 1
    assert Lessons((larger,)).factor(first, card(79, "H100"), on_pairs=True) > 1.5


def test_records_of_before_the_parts_were_told_apart_stay_readable():
    first = plan(card(20))
    record = attempt(first, 20, "out_of_memory").model_dump(exclude={"pairs_from"})
    record["plan"] = {k: v for k, v in record["plan"].items() if k not in ("rows_gb", "pairs_gb")}
    old = PlanAttempt.model_validate(record)
    assert not old.ended_on_pairs
    assert plan(card(20), old).memory_gb < first.memory_gb
