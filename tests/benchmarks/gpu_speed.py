"""How fast: whole jobs, the script run by hand beside them, and whether the losses are the same."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu_bench import Bench, OutOfTime, train_figures
from gpu_stages import cache_environment

from loco.contracts.stages import Stage

#: What the recipe's own batches are: 4 bits, 2 rows a pass, activations computed again, padded.
RECIPE = {
    "load_in_4bit": True,
    "micro_batch": 2,
    "gradient_checkpointing": True,
    "padding_free": False,
}
#: Passes over the rows in the recipe.
_EPOCHS = 3
_HAND_RUN = Path(__file__).with_name("hand_run.py")


def whole(bench: Bench, repeats: int) -> None:
    """Prepare, train and export with the planner's plan: first with nothing cached, then again.

    The first run finds an empty models folder, so every kernel is compiled; later ones find what it
    left. Then stage train alone until it has run `repeats` times warm.
    """
    models = f"models-{len(list(bench.ground.work.glob('models-*')))}"
    _job(bench, "cold", models)
    warm = [_job(bench, "warm", models)]
    for again in range(2, repeats + 1):
        run = bench.train(bench.ground.train_spec(), f"warm {again}", bench.rows, models=models)
        if not bench.failed("speed", run):
            warm.append(train_figures(run))
            bench.journal.put("speed", run_name("train", f"warm {again}"), **warm[-1])
    good = [figures for figures in warm if figures]
    if not good:
        return
    medians = {
        key: round(statistics.median(figures[key] for figures in good), 4)
        for key in ("start_seconds", "steps_seconds", "step_seconds", "peak_gb")
    }
    bench.journal.put("speed", "median of warm", runs=len(good), **medians)


def run_name(stage: str, name: str) -> str:
    """Name of a run in the tables."""
    return f"{stage}, {name}"


def _job(bench: Bench, name: str, models: str) -> dict[str, Any]:
    """One job from nothing to the GGUF; the figures of its training, none where it failed."""
    prepare = bench.stage(
        Stage.PREPARE, bench.ground.prepare_spec(), f"{name} prepare", models=models
    )
    if bench.failed("speed", prepare):
        return {}
    train = bench.stage(
        Stage.TRAIN, bench.ground.train_spec(), f"{name} train", after=(prepare,), models=models
    )
    if bench.failed("speed", train):
        return {}
    figures = train_figures(train)
    bench.journal.put("start", run_name("train", name), timeline=train.timeline())
    export = bench.stage(
        Stage.EXPORT,
        bench.ground.export_spec(),
        f"{name} export",
        after=(prepare, train),
        models=models,
    )
    if bench.failed("export", export):
        bench.journal.put("speed", run_name("train", name), **figures)
        return figures
    bench.journal.put("start", run_name("export", name), timeline=export.timeline())
    keys = ("device", "peak_ram_gb", "size", "seconds")
    seconds = ("read_seconds", "quantize_seconds", "write_seconds", "check_seconds")
    result = export.result
    bench.journal.put(
        "export",
        run_name("export", name),
        **{key: result[key] for key in (*keys, *seconds)},
        perplexity=result["perplexity"],
    )
    shutil.rmtree(export.out / "gguf")
    bench.journal.put(
        "speed",
        run_name("job", name),
        **figures
        | {
            "prepare_seconds": prepare.seconds,
            "train_seconds": train.seconds,
            "export_seconds": export.seconds,
            "whole_seconds": round(prepare.seconds + train.seconds + export.seconds, 3),
            "tokens": train.result["tokens"],
            "gguf_bytes": result["size"],
        },
    )
    return figures


def hand(bench: Bench, runs: int) -> None:
    """The script a user of Unsloth writes, on the same rows, in a process of its own."""
    for number in range(1, runs + 1):
        if bench.left < 60:
            raise OutOfTime(f"hand {number}")
        out = bench.ground.work / "hand"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        command = [sys.executable, str(_HAND_RUN), "--base", str(bench.ground.base)]
        command += ["--rows", str(bench.rows), "--out", str(out)]
        name = "by hand, " + ("first run" if number == 1 else f"run {number}")
        # the second run finds the caches of the first, as a user's does
        environment = bench.ground.environment | cache_environment(
            bench.ground.work / "models-hand"
        )
        with (bench.ground.work / "hand.log").open("w") as log:
            try:
                ended = subprocess.run(
                    command,
                    stdout=log,
                    stderr=log,
                    cwd=bench.ground.work,
                    env=environment,
                    timeout=bench.left,
                )
                code: int | str = ended.returncode
            except subprocess.TimeoutExpired:
                code = "none: out of time"
        if code != 0:
            said = (bench.ground.work / "hand.log").read_text(errors="replace")[-1500:]
            print(said, file=sys.stderr)
            last = (said.strip().splitlines() or ["nothing said"])[-1]
            bench.journal.put("speed", name, error=f"exit code {code}; {last[:300]}")
            return
        t = json.loads((out / "timings.json").read_text())
        shutil.rmtree(out)
        export = t["merge_seconds"] + t["convert_seconds"] + t["quantize_seconds"]
        bench.journal.put(
            "speed",
            name,
            start_seconds=t["first_step_at_seconds"],
            steps_seconds=t["train_seconds"],
            export_seconds=round(export, 3),
            peak_gb=t["peak_reserved_gb"],
            **{key: value for key, value in t.items() if key != "train_seconds"},
        )


def losses(bench: Bench, steps: int) -> None:
    """The loss of every step: the planner's plan and other ways against the recipe's 4-bit 2 x 4."""
    changes: dict[str, dict[str, Any]] = {
        "peft, the recipe's 4-bit 2 x 4": RECIPE | {"engine": "peft"},
        "the planner's plan": {},
        "the planner's plan in 4 bits": {"load_in_4bit": True},
        "unsloth, the recipe's 4-bit 2 x 4": RECIPE | {"engine": "unsloth"},
    }
    reference: list[float] = []
    for name, changed in changes.items():
        spec = bench.ground.train_spec(**changed, max_steps=steps)
        run = bench.train_within(spec, name, bench.rows)
        if bench.failed("losses", run):
            continue
        figures = train_figures(run)
        reference = reference or figures["losses"]
        part, step = largest_difference(reference, figures["losses"])
        bench.journal.put(
            "losses", name, steps=len(figures["losses"]), largest_difference=part, at_step=step,
            **figures,
        )  # fmt: skip


def largest_difference(reference: list[float], other: list[float]) -> tuple[float, int]:
    """Largest relative difference of two curves, and the step where it is (from 1)."""
    parts = [abs(b - a) / abs(a) for a, b in zip(reference, other, strict=True)]
    step = max(range(len(parts)), key=parts.__getitem__)
    return parts[step], step + 1


def compared(bench: Bench, records: list[dict[str, Any]]) -> None:
    """The table of what is to be reached: the service, the floor and the script beside it.

    The script neither loads nor measures what it exported, so its export is compared with the
    time from the first tensor to the finished file, its whole run with the whole job.
    """
    found = {(r["part"], r["name"]): r for r in records if "error" not in r}
    cold, warm = found.get(("speed", "job, cold")), found.get(("speed", "job, warm"))
    middle, export = found.get(("speed", "median of warm")), found.get(("export", "export, warm"))
    by_hand = found.get(("speed", "by hand, first run"), {})
    if not (cold and warm and middle and export):
        return
    ceilings, ground = bench.ceilings, bench.ground
    read = ground.weight_bytes / ceilings["file_read_bytes_per_second"]
    upload = ground.weight_bytes / ceilings.get("upload_bytes_per_second", float("inf"))
    load = max(read, upload)
    write = export["size"] / ceilings["file_write_bytes_per_second"]
    steps = bench.floor_seconds(_EPOCHS * warm["tokens"])
    whole = load + steps + max(read, write)
    lines = (
        ("start to first step, warm", "start_seconds", middle["start_seconds"], load),
        ("start to first step, cold", "start_seconds", cold["start_seconds"], load),
        ("all optimizer steps, warm", "steps_seconds", middle["steps_seconds"], steps),
        ("all optimizer steps, cold", "steps_seconds", cold["steps_seconds"], steps),
        ("a step, median", "step_seconds", middle["step_seconds"], steps / len(warm["losses"])),
        (
            "merge, convert and quantize",
            "export_seconds",
            export["write_seconds"],
            max(read, write),
        ),
        ("whole job, warm", "whole_seconds", warm["whole_seconds"], whole),
        ("whole job, cold", "whole_seconds", cold["whole_seconds"], whole),
    )
    for name, key, measured, floor in lines:
        other = by_hand.get(key)
        bench.journal.put(
            "compared",
            name,
            measured=measured,
            unit="s",
            floor=floor,
            by_hand=other,
            ratio=other / measured if other and measured else None,
        )
