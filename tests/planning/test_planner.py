"""The planner: which plan it takes, what it refuses, and how it goes down when memory runs out."""

import itertools
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from loco.contracts.errors import InvalidRequest, OutOfMemory
from loco.contracts.plans import Device, Lengths, Plan, Shape
from loco.contracts.requests import JobRequest
from loco.contracts.specs import PreferenceSpec, TrainSpec
from loco.planning import batches
from loco.planning.batches import cut, largest_pass, tokens_a_pass, total_steps
from loco.planning.memory import trained_parameters, weight_bytes
from loco.planning.planner import estimates, make_plan, margin_gb, next_rung, peak_memory
from loco.planning.rates import capability_of, rates
from loco.planning.time import operations_a_step, step_seconds
from loco.planning.ways import Way, has_ampere, micro_batches
from loco.recipes.catalog import load_catalog
from loco.recipes.resolve import resolve

ADAPTERS = Path(__file__).parents[2] / "adapters"
QWEN = Shape.of(load_catalog(ADAPTERS)["qwen3-4b"].config or {})
SMOL = Shape.of(load_catalog(ADAPTERS)["smollm2-135m-instruct"].config or {})
#: 200 rows of GSM8K with Qwen's tokenizer.
GSM8K = Lengths(rows=200, tokens=32_974, answer_tokens=18_200, p50=156, p95=268, longest=380)
FULL = Lengths(rows=200, tokens=200 * 1023, answer_tokens=120_000, p50=1023, p95=1023, longest=1023)
#: Cards as they are sold, with what is free on them.
CARDS = {
    "RTX 2060": (6, 7.5),
    "RTX 3070": (8, 8.6),
    "RTX 4070": (12, 8.9),
    "RTX 4080": (16, 8.9),
    "RTX 4090": (24, 8.9),
    "RTX A6000": (48, 8.6),
    "A100 80GB": (80, 8.0),
    "H200": (141, 9.0),
}


def card(name: str) -> Device:
    memory, capability = CARDS[name]
    return Device(name=name, memory_gb=memory, free_gb=0.95 * memory, compute_capability=capability)


def gpu(free_gb: float, capability: float = 8.6) -> Device:
    return Device(name="RTX 3070", memory_gb=200, free_gb=free_gb, compute_capability=capability)


def cpu(free_gb: float = 16) -> Device:
    return Device(name="cpu", memory_gb=32, free_gb=free_gb, cores=2)


def recipe(**train: object) -> TrainSpec:
    request = JobRequest.model_validate({"adapter": "math", "train": train})
    return resolve(ADAPTERS, request).train


def engine_of(device: Device) -> str:
    return "peft" if has_ampere(device) else "unsloth"


def plan(device: Device, lengths: Lengths = GSM8K, **train: object) -> Plan:
    return make_plan(recipe(**train), QWEN, lengths, device, engine=engine_of(device))


def test_the_shape_of_qwen3_4b_has_its_parameters():
    assert QWEN.parameters == pytest.approx(4.02e9, rel=0.005)
    assert trained_parameters(recipe(), QWEN) == 11_796_480  # as PEFT counts for r 16 on q/k/v/o
    assert weight_bytes(QWEN, "4bit") == pytest.approx(2.65e9, rel=0.01)


def test_all_linear_layers_can_be_adapted():
    spec = recipe(lora={"target_modules": "all-linear"})
    assert trained_parameters(spec, QWEN) == 33_030_144  # as PEFT counts for r 16 on all seven


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("lengths", [GSM8K, FULL], ids=["gsm8k", "full"])
def test_every_card_gets_a_plan_that_fits_with_a_margin(name: str, lengths: Lengths):
    device = card(name)
    chosen = plan(device, lengths)
    assert chosen.micro_batch * chosen.accumulation == 8
    assert chosen.max_length == lengths.longest
    # what is left free covers the model's error, the CUDA context and fragments
    assert chosen.memory_gb + margin_gb(chosen.memory_gb, device) <= device.free_gb


@pytest.mark.parametrize("lengths", [GSM8K, FULL], ids=["gsm8k", "full"])
def test_four_bits_are_taken_where_they_are_clearly_faster(lengths: Lengths):
    for free in range(6, 60):
        device = gpu(free)
        found = [
            e for e in estimates(recipe(), QWEN, lengths, device, engine="peft") if e.fits(device)
        ]
        fastest = {
            precision: min(e.step_seconds for e in found if e.way.precision == precision)
            for precision in {e.way.precision for e in found}
        }
        sixteen = fastest.get("bf16", math.inf)
        wanted = "bf16" if sixteen <= 1.1 * fastest["4bit"] else "4bit"
        assert plan(device, lengths).precision == wanted
    assert plan(card("RTX 3070"), lengths).precision == "4bit"
    assert plan(card("RTX 4090"), lengths).precision == "bf16"


def test_a_large_card_keeps_activations_and_a_small_one_computes_them_again():
    assert not plan(card("H200"), FULL).gradient_checkpointing
    assert plan(card("RTX 3070"), FULL).gradient_checkpointing


def test_more_memory_never_makes_a_slower_plan():
    for lengths in (GSM8K, FULL):
        plans = [plan(gpu(free), lengths) for free in range(6, 60, 2)]
        slower = [
            (a, b)
            for a, b in itertools.pairwise(plans)
            # ties are 2 %; the step from 4 to 16 bits buys precision, and may cost time
            if a.precision == b.precision and b.step_seconds > a.step_seconds * 1.021
        ]
        assert slower == []


def test_the_fastest_of_its_precision_is_taken():
    for free in (6, 9, 12, 16, 24, 48):
        device, spec = gpu(free), recipe()
        chosen = plan(device)
        rivals = [
            e.step_seconds
            for e in estimates(spec, QWEN, GSM8K, device, engine="peft")
            if e.fits(device) and e.way.precision == chosen.precision
        ]
        assert chosen.step_seconds <= min(rivals) * 1.02


def test_passes_are_recorded_where_launching_takes_long():
    assert plan(card("H200"), GSM8K).cuda_graphs
    assert not plan(card("RTX 4090"), GSM8K).cuda_graphs  # their second pool does not fit
    assert not plan(card("H200"), GSM8K, cuda_graphs=False).cuda_graphs
    assert plan(card("RTX 4090"), GSM8K, cuda_graphs=True).cuda_graphs
    assert not plan(cpu(64), GSM8K, cuda_graphs=True).cuda_graphs
    assert not plan(gpu(40, 7.5), GSM8K, cuda_graphs=True).cuda_graphs  # no rows end to end


def test_dropout_is_not_recorded():
    chosen = plan(card("H200"), lora={"dropout": 0.1}, cuda_graphs=True)
    assert chosen.padding_free
    assert not chosen.cuda_graphs


@pytest.mark.parametrize("pin", [{"micro_batch": 32, "batch_size": 32}, {"max_length": 20_000}])
def test_a_pin_on_recording_is_kept_where_it_gains_nothing(pin):
    longest = pin.get("max_length", 1023)
    whole = {"tokens": 200 * longest, "p50": longest, "p95": longest, "longest": longest}
    rows = FULL.model_copy(update=whole)
    assert plan(card("H200"), rows, gradient_accumulation=1, cuda_graphs=True, **pin).cuda_graphs


def test_rows_are_laid_end_to_end_where_attention_is_plain():
    def free(max_length: int = 1024, **config: object) -> bool:
        shape = Shape.of((load_catalog(ADAPTERS)["qwen3-4b"].config or {}) | config)
        spec = recipe(max_length=max_length)
        return make_plan(spec, shape, GSM8K, card("H200"), engine="peft").padding_free

    assert free()
    assert not free(model_type="gemma2")
    assert not free(model_type="qwen3_next")
    mistral = {"model_type": "mistral", "sliding_window": 512}
    assert not free(**mistral)
    assert free(512, **mistral)  # no row is longer than the window
    assert free(sliding_window=512, use_sliding_window=False)


def test_padded_rows_cannot_be_recorded():
    with pytest.raises(InvalidRequest, match="padded rows") as caught:
        plan(gpu(40), GSM8K, cuda_graphs=True, padding_free=False)
    assert caught.value.param == "train.cuda_graphs"


def test_rows_lie_end_to_end_where_the_gpu_can():
    assert plan(gpu(40, 8.0)).padding_free
    assert not plan(gpu(40, 7.5)).padding_free
    assert plan(gpu(40, 7.5)).precision == "fp16"
    assert plan(gpu(40, 8.0)).precision == "bf16"


@pytest.mark.parametrize("batch", [(2, 4), (1, 1), (3, 5), (7, 1), (4, 16)])
def test_the_effective_batch_is_exactly_the_recipes(batch: tuple[int, int]):
    rows = batch[0] * batch[1]
    for free in (6, 9, 14, 40):
        chosen = plan(gpu(free), batch_size=batch[0], gradient_accumulation=batch[1])
        assert chosen.micro_batch * chosen.accumulation == rows


@pytest.mark.parametrize(
    ("pin", "value"),
    [
        ("load_in_4bit", True),
        ("load_in_4bit", False),
        ("micro_batch", 1),
        ("micro_batch", 4),
        ("gradient_checkpointing", True),
        ("gradient_checkpointing", False),
        ("padding_free", False),
        ("padding_free", True),
    ],
)
def test_pins_are_kept(pin: str, value: object):
    chosen = plan(gpu(60), **{pin: value})
    found = chosen.precision == "4bit" if pin == "load_in_4bit" else getattr(chosen, pin)
    assert found == value


def test_a_micro_batch_that_does_not_divide_the_step_is_refused_by_name():
    with pytest.raises(InvalidRequest) as refused:
        plan(gpu(60), micro_batch=3)
    assert refused.value.param == "train.micro_batch"
    assert "1, 2, 4, 8" in (refused.value.hint or "")
    assert micro_batches(recipe(batch_size=3, gradient_accumulation=2)) == (6, 3, 2, 1)


def test_where_only_no_margin_is_left_the_recipes_own_batches_are_taken():
    smallest = min(
        e.memory.peak_gb for e in estimates(recipe(), QWEN, FULL, gpu(60), engine="peft")
    )
    own = Way("peft", "4bit", 2, True, True, cuda_graphs=True)
    needed = peak_memory(own, recipe(), QWEN, FULL, gpu(60)).peak_gb
    assert smallest + margin_gb(smallest, gpu(60)) > needed + 0.05
    chosen = plan(gpu(needed + 0.05), FULL)
    assert Way.of(chosen) == own
    assert "without a margin" in chosen.why
    # rows of many lengths need a second pool to be recorded, and there is no room for one
    mixed = replace(own, cuda_graphs=False)
    needed = peak_memory(mixed, recipe(), QWEN, GSM8K, gpu(60)).peak_gb
    assert Way.of(plan(gpu(needed + 0.01))) == mixed
    assert plan(gpu(smallest + 0.02), FULL).micro_batch == 1


def test_a_refusal_says_what_would_fit():
    with pytest.raises(OutOfMemory) as refused:
        plan(gpu(3))
    assert refused.value.status == 422
    assert "RTX 3070 has 3.0 GB free" in refused.value.message
    assert "GB free, or a smaller base model" in (refused.value.hint or "")

    with pytest.raises(OutOfMemory) as refused:
        plan(gpu(8), FULL, load_in_4bit=False)
    assert refused.value.param == "train.load_in_4bit"
    assert "Unset train.load_in_4bit" in (refused.value.hint or "")

    long = FULL.model_copy(update={"tokens": 200 * 30_000, "p50": 30_000, "p95": 30_000})
    long = long.model_copy(update={"longest": 30_000})
    with pytest.raises(OutOfMemory) as refused:
        plan(gpu(6), long, max_length=30_000)
    assert refused.value.param == "train.max_length"
    length = int((refused.value.hint or "").split("max_length to ")[1].split()[0])
    assert plan(gpu(6), cut(long, length), max_length=length)
    assert length % 64 == 0


def test_the_ladder_goes_down_to_its_floor():
    spec, device = recipe(), card("H200")
    rung: Plan | None = plan(device)
    seen, precisions = [], []
    while rung is not None:
        assert rung.micro_batch * rung.accumulation == 8
        seen.append((rung.micro_batch, rung.gradient_checkpointing, rung.cuda_graphs))
        precisions.append(rung.precision)
        rung = next_rung(rung, spec, QWEN, GSM8K, device)
    assert seen == [
        (8, False, True),
        (4, False, True),
        (2, False, True),
        (1, False, True),
        (1, True, True),
        (1, True, False),
        (2, True, False),
        (1, True, False),
    ]
    assert precisions == ["bf16"] * 6 + ["4bit"] * 2


def test_every_rung_needs_less_memory_and_keeps_what_is_learnt():
    pins = {"micro_batch": 6, "load_in_4bit": True, "cuda_graphs": True}
    spec = recipe(batch_size=6, gradient_accumulation=1, **pins)
    device = gpu(60)
    rungs = [make_plan(spec, QWEN, FULL, device, engine="peft")]
    while below := next_rung(rungs[-1], spec, QWEN, FULL, device):
        rungs.append(below)
    assert [r.micro_batch for r in rungs] == [6, 3, 1, 1, 1]
    assert {r.precision for r in rungs} == {"4bit"}
    assert all(b.memory_gb < a.memory_gb for a, b in itertools.pairwise(rungs[:-1]))
    # the model sees no difference in recording rows of one length; the allocator may
    assert [r.cuda_graphs for r in rungs] == [True] * 4 + [False]
    assert rungs[-1].memory_gb == rungs[-2].memory_gb


def test_a_cpu_takes_the_recipes_own_batches():
    chosen = plan(cpu(32))
    assert (chosen.micro_batch, chosen.accumulation) == (2, 4)
    assert chosen.precision == "fp32"
    assert chosen.padding_free
    assert not chosen.gradient_checkpointing
    pinned = make_plan(recipe(micro_batch=8), SMOL, GSM8K, cpu(32), engine="peft")
    assert pinned.micro_batch == 8
    asked_for_4bit = make_plan(recipe(load_in_4bit=True), SMOL, GSM8K, cpu(32), engine="peft")
    assert asked_for_4bit.precision == "fp32"


def test_a_cpu_with_little_memory_gets_smaller_batches_or_is_refused():
    tight = make_plan(
        recipe(batch_size=8, gradient_accumulation=1), SMOL, FULL, cpu(5), engine="peft"
    )
    assert tight.micro_batch < 8 or tight.gradient_checkpointing
    with pytest.raises(OutOfMemory) as refused:
        plan(cpu(8))
    assert "this machine" in (refused.value.hint or "")


def test_memory_grows_with_everything_that_needs_it():
    spec, device = recipe(), gpu(200)

    def peak(lengths: Lengths = FULL, **way: object) -> float:
        fields = {
            "engine": "peft",
            "precision": "bf16",
            "micro_batch": 2,
            "gradient_checkpointing": False,
            "padding_free": True,
            "cuda_graphs": False,
        } | way
        return peak_memory(Way(**fields), spec, QWEN, lengths, device).peak_gb

    assert peak() < peak(micro_batch=4) < peak(micro_batch=8)
    assert peak(GSM8K) < peak(GSM8K, padding_free=False)
    assert peak(gradient_checkpointing=True) < peak()
    assert peak(precision="4bit") < peak()
    assert peak(GSM8K) < peak(GSM8K, cuda_graphs=True)
    all_linear = recipe(lora={"target_modules": "all-linear"})
    way = Way("peft", "bf16", 2, False, True, False)
    assert peak() < peak_memory(way, all_linear, QWEN, FULL, device).peak_gb


def test_time_falls_with_fewer_passes_and_rises_with_recomputing():
    spec, device = recipe(), card("RTX 4090")

    def seconds(**way: object) -> float:
        fields = {
            "engine": "peft",
            "precision": "bf16",
            "micro_batch": 8,
            "gradient_checkpointing": False,
            "padding_free": True,
            "cuda_graphs": False,
        } | way
        return step_seconds(Way(**fields), spec, QWEN, GSM8K, device)

    assert seconds() < seconds(micro_batch=4) < seconds(micro_batch=1)
    assert seconds() < seconds(gradient_checkpointing=True)
    assert seconds() < seconds(padding_free=False)
    assert seconds() < seconds(precision="4bit")
    floor = operations_a_step(QWEN, GSM8K, 8) / rates(device).operations
    assert floor < seconds()
    device = card("H200")  # so fast that launching kernels takes longer than running them
    assert seconds(micro_batch=1, cuda_graphs=True) < seconds(micro_batch=1)


def test_the_largest_pass_lies_between_the_mean_and_all_longest():
    spec = recipe()
    for micro in (1, 2, 4, 8):
        way = Way("peft", "bf16", micro, False, True, False)
        most = largest_pass(way, spec, GSM8K)
        assert tokens_a_pass(way, spec, GSM8K) < most <= micro * GSM8K.longest
        padded = Way("peft", "bf16", micro, False, False, False)
        assert largest_pass(padded, spec, GSM8K) == micro * GSM8K.longest
        assert tokens_a_pass(way, spec, GSM8K) <= tokens_a_pass(padded, spec, GSM8K)


@pytest.mark.parametrize("count", [200, 4000])
@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_passes_are_as_large_as_those_of_rows_dealt_at_random(count: int, micro: int):
    dealer = random.Random(7)
    sizes = [round(60 + dealer.gammavariate(4, 27)) for _ in range(count)]  # skewed as GSM8K's
    ordered = sorted(sizes)
    lengths = Lengths(
        rows=count,
        tokens=sum(sizes),
        answer_tokens=sum(sizes) // 2,
        p50=ordered[count // 2],
        p95=ordered[95 * count // 100],
        longest=ordered[-1],
    )
    passes: list[list[int]] = []
    for _ in range(3):  # epochs
        dealer.shuffle(sizes)
        for start in range(0, count, 8):
            step = sorted(sizes[start : start + 8])
            passes += [step[i : i + micro] for i in range(0, 8, micro)]
    end_to_end = Way("peft", "bf16", micro, False, True, False)
    padded = Way("peft", "bf16", micro, False, False, False)
    most = max(sum(rows) for rows in passes)
    assert largest_pass(end_to_end, recipe(), lengths) == pytest.approx(most, rel=0.15)
    mean = statistics.mean(micro * max(rows) for rows in passes)
    assert tokens_a_pass(padded, recipe(), lengths) == pytest.approx(mean, rel=0.08)


def test_steps_are_counted_as_the_trainer_counts_them():
    assert total_steps(recipe(), 200) == 75
    assert total_steps(recipe(epochs=1), 9) == 2
    assert total_steps(recipe(max_steps=7), 200) == 7


@pytest.mark.parametrize(
    ("name", "teraflops", "gigabytes"),
    [
        ("NVIDIA H200", 989, 4800),
        ("NVIDIA GeForce RTX 3070", 41, 448),
        ("NVIDIA GeForce RTX 3070 Ti", 43, 608),
        ("NVIDIA GeForce RTX 4090", 165, 1008),
        ("NVIDIA A100-SXM4-80GB", 312, 1935),
        ("NVIDIA A100-PCIE-40GB", 312, 1555),
        ("NVIDIA L40S", 362, 864),
        ("NVIDIA L4", 121, 300),
        ("Tesla T4", 65, 320),
        ("NVIDIA A10G", 125, 600),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA RTX 6000 Ada Generation", 364, 960),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", 0.6 * 58, 0.6 * 504),
    ],
)
def test_names_lead_to_the_data_sheets_rates(name: str, teraflops: float, gigabytes: float):
    found = rates(Device(name=name, memory_gb=10, free_gb=10))
    assert found.known
    assert found.operations == pytest.approx(0.8e12 * teraflops)
    assert found.bandwidth == pytest.approx(0.9e9 * gigabytes)


def test_an_unknown_gpu_gets_cautious_rates_and_the_plan_says_so():
    unknown = Device(name="Some GPU", memory_gb=40, free_gb=40, compute_capability=8.9)
    assert not rates(unknown).known
    assert rates(unknown).operations < rates(card("RTX 4090")).operations
    assert "is a guess" in plan(unknown).why


def test_a_card_known_by_name_has_its_generation():
    assert capability_of("RTX 3070") == 8.6
    assert capability_of("NVIDIA A100-SXM4-80GB") == 8.0
    assert capability_of("Tesla T4") == 7.5
    assert capability_of("NVIDIA H200") == 9.0
    assert capability_of("RTX 5090") == 10.0
    assert capability_of("something else") is None


def choice(chosen: Plan) -> str:
    """A plan as the table of docs/recipes.md shows it."""
    kept = "recomputed" if chosen.gradient_checkpointing else "kept"
    graphs = ", graphs" if chosen.cuda_graphs else ""
    return (
        f"{chosen.precision}, {chosen.micro_batch} x {chosen.accumulation}, {kept}{graphs} | "
        f"{chosen.memory_gb:.1f} GB | {chosen.step_seconds:.2g} s"
    )


def test_the_table_of_choices_is_the_planners():
    page = (ADAPTERS.parent / "docs" / "recipes.md").read_text()
    rows = [
        f"| {name}, {memory} GB | {choice(plan(card(name), GSM8K))} | "
        f"{choice(plan(card(name), FULL))} |"
        for name, (memory, _) in CARDS.items()
    ]
    assert [row for row in rows if row not in page] == [], "\n" + "\n".join(rows)


@pytest.mark.parametrize(
    "field", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_mixture_of_experts_is_refused_by_its_field(field: str, nested: bool) -> None:
    config = QWEN.model_dump() | {field: 128, "num_experts_per_tok": 8}
    with pytest.raises(InvalidRequest, match=rf"mixture of experts \({field} 128 in") as caught:
        Shape.of({"text_config": config} if nested else config)
    assert caught.value.param == "base_model"
    assert "dense" in (caught.value.hint or "")


def test_experts_counted_by_layer_or_kind_are_refused_too() -> None:
    with pytest.raises(InvalidRequest, match=r"\(moe_num_experts \[64, 64\] in"):
        Shape.of(QWEN.model_dump() | {"moe_num_experts": [64, 64]})


@pytest.mark.parametrize("experts", [None, 0, 1, [], [1, 1]])
def test_a_dense_model_may_have_the_field(experts: int | list[int] | None) -> None:
    assert Shape.of(QWEN.model_dump() | {"num_experts": experts}) == QWEN


def test_layers_of_unequal_width_count_as_the_widest() -> None:
    widths = [QWEN.intermediate_size, 128]
    assert Shape.of(QWEN.model_dump() | {"intermediate_size": widths}) == QWEN


PAIRS = Lengths(rows=4000, tokens=1_600_000, answer_tokens=1_200_000, p50=400, p95=620, longest=700)


def of_pairs(device: Device, **preference: object) -> tuple[TrainSpec, Plan]:
    spec = recipe().model_copy(update={"preference": PreferenceSpec.model_validate(preference)})
    lengths = GSM8K.model_copy(update={"pairs": PAIRS})
    return spec, make_plan(spec, QWEN, lengths, device, engine="peft")


def test_pairs_take_the_largest_pass_that_fits():
    for name in ("RTX 3070", "RTX 4080", "RTX 4090", "A100 80GB", "H200"):
        device = card(name)
        _, chosen = of_pairs(device)
        assert chosen.pairs is not None
        assert chosen.memory_gb + margin_gb(chosen.memory_gb, device) <= device.free_gb
        way = replace(Way.of(chosen), micro_batch=2 * chosen.pairs, cuda_graphs=False)
        second = batches.of_pairs(recipe(), PreferenceSpec())
        assert peak_memory(way, second, QWEN, PAIRS, device).peak_gb <= chosen.memory_gb
    assert of_pairs(card("H200"))[1].pairs == 16
    small = of_pairs(card("RTX 3070"))[1].pairs or 0
    assert 1 <= small < 16
    assert plan(card("H200")).pairs is None


def test_pairs_add_their_steps_and_seconds():
    spec, chosen = of_pairs(card("H200"), epochs=2)
    lengths = GSM8K.model_copy(update={"pairs": PAIRS})
    assert batches.all_steps(spec, lengths) == 75 + 2 * 125  # 2,000 pairs, 16 a step
    alone = plan(card("H200"))
    assert chosen.preference_seconds > 0 == alone.preference_seconds
    assert chosen.train_seconds == pytest.approx(
        alone.train_seconds + chosen.preference_seconds, abs=0.2
    )
    once = of_pairs(card("H200"), epochs=1)[1].preference_seconds
    # two epochs, and one pass for the reference
    assert chosen.preference_seconds / once == pytest.approx(2.5 / 1.5, rel=0.02)


def test_a_shortage_on_pairs_halves_them_then_computes_again_then_takes_4_bits():
    device = gpu(80)
    spec, chosen = of_pairs(device)
    lengths = GSM8K.model_copy(update={"pairs": PAIRS})
    chosen = chosen.model_copy(update={"precision": "bf16", "gradient_checkpointing": False})
    seen = []
    below: Plan | None = chosen
    while below := next_rung(below, spec, QWEN, lengths, device, on_pairs=True):
        seen.append((below.pairs, below.gradient_checkpointing, below.precision))
    halves = []
    while chosen.pairs and (not halves or halves[-1] > 1):
        halves.append(((halves[-1] if halves else chosen.pairs) + 1) // 2)
    expected = [(n, False, "bf16") for n in halves]
    assert seen == [*expected, (1, True, "bf16"), (1, True, "4bit")]


def test_a_shortage_on_rows_leaves_the_pairs_as_they_are():
    device = gpu(80)
    spec, chosen = of_pairs(device)
    lengths = GSM8K.model_copy(update={"pairs": PAIRS})
    below = next_rung(chosen, spec, QWEN, lengths, device)
    assert below is not None
    assert (below.micro_batch, below.pairs) == (chosen.micro_batch // 2, chosen.pairs)
