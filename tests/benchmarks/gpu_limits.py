"""Memory: is the peak what the planner says, what runs on smaller cards, what when it runs out."""

from typing import Any

from gpu_bench import Bench, train_figures
from gpu_speed import RECIPE

#: Precision, rows a pass, tokens a row, activations computed again.
_CONFIGURATIONS: tuple[tuple[str, int, int, bool], ...] = (
    ("4bit", 1, 1024, True),
    ("4bit", 2, 1024, True),
    ("4bit", 8, 512, False),
    ("4bit", 16, 256, False),
    ("4bit", 4, 1024, False),
    ("bf16", 1, 256, True),
    ("bf16", 2, 512, False),
    ("bf16", 4, 1024, True),
    ("bf16", 8, 1024, False),
    ("bf16", 16, 512, True),
)
#: Rows an optimizer step, so that every micro-batch above divides it.
_STEP_ROWS = 16
_STEPS = 5
#: Allocator caps in GiB: what an 8 GB card leaves beside the CUDA context, and what is asked of 6 GB.
CAPS = (7.5, 4.0)


def memory(bench: Bench) -> None:
    """Peak reserved memory of pinned configurations against what the planner expected of them."""
    for precision, rows, tokens, recompute in _CONFIGURATIONS:
        name = f"{precision} {rows} x {tokens}" + (", recompute" if recompute else "")
        spec = bench.ground.train_spec(
            load_in_4bit=precision == "4bit",
            batch_size=_STEP_ROWS,
            gradient_accumulation=1,
            micro_batch=rows,
            gradient_checkpointing=recompute,
            max_length=tokens,
            max_steps=_STEPS,
        )
        filled = bench.ground.filled_rows(tokens, _STEP_ROWS * _STEPS, bench.rows)
        run = bench.train_within(spec, name, filled)
        if bench.failed("memory", run):
            continue
        figures = train_figures(run)
        bench.journal.put("memory", name, tokens=tokens, **_against(figures), **figures)


def caps(bench: Bench) -> None:
    """The planner's plan and the recipe's on rows of 1,024 tokens, on less and less memory."""
    filled = bench.ground.filled_rows(1024, 48, bench.rows)
    for cap in CAPS:
        recipe_step: float | None = None
        changes: dict[str, dict[str, Any]] = {
            "the recipe's 4-bit 2 x 4": RECIPE,
            "the planner's plan": {},
        }
        if cap == CAPS[0]:
            changes["unsloth, the recipe's 4-bit 2 x 4"] = RECIPE | {"engine": "unsloth"}
        for plan, changed in changes.items():
            name = f"{cap} GiB: {plan}"
            spec = bench.ground.train_spec(**changed, max_steps=6)
            run = bench.train_within(spec, name, filled, cap_gib=cap)
            if bench.failed("caps", run):
                continue
            figures = train_figures(run)
            recipe_step = recipe_step or figures["step_seconds"]
            ratio = recipe_step / figures["step_seconds"]
            measured = {"measured_gb": figures["peak_gb"], "ratio": ratio}
            bench.journal.put("caps", name, **measured, **figures)


def ladder(bench: Bench) -> None:
    """A planner that believes in the whole card while the allocator stops at 7.5 GiB."""
    filled = bench.ground.filled_rows(1024, 48, bench.rows)
    spec = bench.ground.train_spec(load_in_4bit=True, max_steps=6)
    name = f"told the whole card, allowed {CAPS[0]} GiB"
    run = bench.train_within(spec, name, filled, cap_gib=CAPS[0], told=False)
    if bench.failed("ladder", run):
        return
    figures = train_figures(run)
    attempts = run.result["attempts"]
    bench.journal.put("ladder", name, attempts=attempts, measured_gb=figures["peak_gb"], **figures)
    told = bench.train_within(spec, "told the truth", filled, cap_gib=CAPS[0])
    if not bench.failed("ladder", told):
        honest = train_figures(told)
        bench.journal.put(
            "ladder",
            "told the truth",
            attempts=told.result["attempts"],
            measured_gb=honest["peak_gb"],
            **honest,
        )


def _against(figures: dict[str, Any]) -> dict[str, float]:
    measured, predicted = figures["peak_gb"], figures["predicted_gb"]
    part = predicted / measured - 1 if measured else 0.0
    return {"measured_gb": measured, "error_part": part}
