"""What `tiny` gains over its base, seed by seed: real jobs through the real services.

    .venv/bin/python tests/benchmarks/seeds.py [--seeds 5] [--data-dir DIR]

Prints a row per seed and eval set: base and candidate accuracy, exact McNemar p, training seconds,
and prepare's overlap check. Both models answer from Ollama, the candidate from its Q4_K_M GGUF.
"""

import argparse
import sys
from pathlib import Path

from loco.box.stack import Stack
from loco.client.client import Client
from loco.contracts.jobs import Job, JobStatus
from loco.contracts.results import EvalResult, PrepareResult, TrainResult
from loco.contracts.stages import Stage
from loco.settings import Settings


def main() -> int:
    """Runs the jobs one after the other and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, default=Path(".loco/seeds"))
    arguments = parser.parse_args()
    settings = Settings.from_environment().model_copy(
        update={"data_dir": arguments.data_dir.absolute(), "port": 0}
    )
    failed = 0
    print("seed  set        base           candidate      gain    p        loss           train s")
    with Stack(settings) as stack:
        if not stack.wait_ready():
            print(stack.error or "not ready", file=sys.stderr)
            return 1
        with Client(stack.server) as client:
            for seed in range(arguments.seeds):
                job = client.submit("math", profile="tiny", seed=seed, reuse=False, wait=True)
                if job.status is JobStatus.SUCCEEDED:
                    report(seed, job)
                else:
                    failed += 1
                    print(f"{seed:<5} {job.status}: {job.error and job.error.message}")
    return 1 if failed else 0


def report(seed: int, job: Job) -> None:
    """The rows of one job."""
    prepared = PrepareResult.model_validate(job_result(job, Stage.PREPARE))
    trained = TrainResult.model_validate(job_result(job, Stage.TRAIN))
    measured = EvalResult.model_validate(job_result(job, Stage.EVAL))
    for c in measured.comparisons:
        print(
            f"{seed:<5} {c.set:<10} {score(c.base.correct, c.base.total)} "
            f"{score(c.candidate.correct, c.candidate.total)} {c.gain:+.0%}  {c.p_value:<8.2g} "
            f"{trained.first_loss:.3f}→{trained.last_loss:.3f}  {trained.seconds:.0f}",
            flush=True,
        )
    print(
        f"      overlap    {prepared.read} rows compared with {prepared.eval_items_checked} eval "
        f"items: {prepared.dropped.overlap} left out, {prepared.kept} trained on",
        flush=True,
    )


def job_result(job: Job, stage: Stage) -> dict[str, object]:
    """The committed result of one stage."""
    task = job.stage(stage)
    assert task is not None
    assert task.result is not None
    return task.result


def score(correct: int, total: int) -> str:
    """Like ` 61/100 (61%)`."""
    return f"{correct:>3}/{total:<3} ({correct / total:>3.0%})"


if __name__ == "__main__":
    sys.exit(main())
