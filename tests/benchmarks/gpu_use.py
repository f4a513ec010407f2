"""How much of the card's arithmetic training uses: model FLOP utilisation on full and real rows."""

from pathlib import Path
from typing import Any

from gpu_bench import Bench, train_figures


def mfu(bench: Bench) -> None:
    """Tokens a second of the median step, in operations over the measured rate of matrix products.

    Once over the rate that the card holds, once over its rate at first, before it grows warm.
    Counted are 4 operations a parameter and token: 2 forward, 2 backward, as the weights are frozen
    (attention's own products, the adapter and what is computed again are not counted).
    """
    full = bench.ground.filled_rows(1024, 96, bench.rows)
    eight = {"batch_size": 8, "gradient_accumulation": 1}
    _measure(
        bench, "full rows of 1,024, 8 x 1, bf16", full, 12, 1024, eight | {"load_in_4bit": False}
    )
    _measure(
        bench, "full rows of 1,024, 8 x 1, 4 bits", full, 8, 1024, eight | {"load_in_4bit": True}
    )
    _measure(bench, "GSM8K, 8 rows a step, the planner's plan", bench.rows, None, None, {})
    larger = {"batch_size": 64, "gradient_accumulation": 1, "epochs": 8.0}
    _measure(bench, "GSM8K, 64 rows a step, the planner's plan", bench.rows, None, None, larger)


def _measure(
    bench: Bench,
    name: str,
    rows: Path,
    steps: int | None,
    tokens: int | None,
    changed: dict[str, Any],
) -> None:
    """Trains and notes the utilisation; `tokens` a row, None: the rows' mean."""
    spec = bench.ground.train_spec(**changed, max_steps=steps)
    run = bench.train_within(spec, name, rows)
    if bench.failed("mfu", run):
        return
    figures = train_figures(run)
    row = tokens or run.result["tokens"] / run.result["examples"]
    step_tokens = row * spec.step_rows
    floor = bench.floor_seconds(step_tokens)
    held = bench.ceilings["matmul_per_second"]
    at_first = bench.ceilings.get("matmul_at_first_per_second", held)
    bench.journal.put(
        "mfu",
        name,
        tokens_per_second=step_tokens / figures["step_seconds"],
        floor_seconds=floor,
        utilisation=floor / figures["step_seconds"],
        utilisation_at_first=floor / figures["step_seconds"] * held / at_first,
        warm_up_included=run.result["tokens_per_second"],
        **figures,
    )
