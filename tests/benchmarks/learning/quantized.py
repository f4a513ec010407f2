"""The study's adapters as a user gets them: exported to Q4_K_M, or as a GGUF LoRA on a base's own file.

llama.cpp answers on the CPU. The base goes the same way as an adapter that changes nothing. Several
processes share the file in memory; each answers its part of the problems, with a few threads: a few
tokens at once keep few busy.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import BASE, NUM_CTX, Model
from lab import Lab
from schedule import CHOSEN, Driver

from loco.contracts.specs import ExportSpec
from loco.contracts.stages import Stage
from programs import Budget, Skipped, own_environment

#: Sequences at once of one process. Measured with 1.5 billion parameters on two cores, tokens a second:
#: 32 with 8, 48 with 16, 62 with 32. A smaller model needs fewer (see `answer_gguf.SLOTS`).
SLOTS = 32
_LOOK_SECONDS = 0.2


def export(lab: Lab, name: str, adapter: Path | None, model: Model = "capable") -> Path:
    """The Q4_K_M GGUF of an adapter, or of the base, by the export stage.

    Args:
        lab: the study's folder.
        name: what it is called here.
        adapter: its folder; None: the base.
        model: which base.
    """
    from stage_runs import ADAPTER, zero_adapter  # it imports torch
    from transformers import AutoTokenizer

    folder, base = lab.out / "export" / name, lab.options.folders[model]
    if not (folder / "result.json").is_file():
        given = lab.out / "export" / f"{name}-adapter"
        shutil.rmtree(given, ignore_errors=True)
        given.mkdir(parents=True)
        if adapter is None:
            zero_adapter(base, given)
        else:
            for file in (ADAPTER, "adapter_config.json"):
                shutil.copyfile(adapter / file, given / file)
        AutoTokenizer.from_pretrained(base).save_pretrained(given)
        files = {f"train/checkpoints/{file.name}": file for file in given.iterdir()}
        spec = ExportSpec(base_model=lab.base(model), model_name=f"study-{name}")
        inputs = lab.inputs(files, locks=folder / "locks")
        lab.run(Stage.EXPORT, spec, inputs, folder, lab.options.gpus[-1])
    result = json.loads((folder / "result.json").read_text())
    _say(f"{name}: {result['size'] / 1e9:.2f} GB, exported in {result['seconds']:.0f} s")
    return folder / str(result["gguf"])


def adapter_of(gguf: Path) -> Path:
    """The GGUF LoRA that export wrote beside a merged model."""
    folder = gguf.parents[1]
    told = json.loads((folder / "result.json").read_text())["adapter_gguf"]
    return folder / str(told)


def answer(
    lab: Lab,
    name: str,
    gguf: Path,
    problems: int,
    processes: int,
    threads: int,
    adapter: Path | None = None,
) -> None:
    """Has a GGUF answer the first test problems, each part of them in a process of its own.

    Args:
        lab: the study's folder.
        name: of the answers.
        gguf: the model.
        problems: how many.
        processes: how many share them.
        threads: of each process.
        adapter: a GGUF LoRA that is put on the model.

    Raises:
        Skipped: the time was up; what is answered is kept.
    """
    started = time.monotonic()
    home = lab.out / "results" / "gguf"
    home.mkdir(parents=True, exist_ok=True)
    if _answered(home, name) >= problems:
        return
    children = [
        subprocess.Popen(
            [
                *(sys.executable, str(Path(__file__)), str(gguf), str(lab.out / "test.jsonl")),
                *(str(lab.options.folders["capable"]), str(home / f"{name}.{part}.jsonl")),
                *map(str, (part, processes, problems, threads)),
                *map(str, (lab.options.scale.num_predict, lab.budget.seconds_left)),
                *([] if adapter is None else [str(adapter)]),
            ],
            env=own_environment({"CUDA_VISIBLE_DEVICES": ""}),
        )
        for part in range(processes)
    ]
    codes = _ended(children, lab.budget)
    if any(codes) and not lab.budget.over.is_set():
        raise RuntimeError(f"gguf {name}: processes ended with {codes}")
    done = _answered(home, name)
    _say(f"{name}: {done} answers, {time.monotonic() - started:.0f} s")
    if done < problems:
        raise Skipped(f"gguf {name}: {problems - done} left, the time is up")


def _ended(children: Sequence["subprocess.Popen[bytes]"], budget: Budget) -> list[int]:
    """The exit codes; they know their time, but not that the study ends before it."""
    try:
        while any(child.poll() is None for child in children):
            if budget.over.wait(_LOOK_SECONDS):
                break
    finally:
        for child in children:
            child.kill()  # every answer is in its file at once
    return [child.wait() for child in children]


def _answered(home: Path, name: str) -> int:
    from answers import read  # it imports jinja2

    return len({id_ for path in home.glob(f"{name}.*.jsonl") for id_ in read(path)})


def run(lab: Lab, driver: Driver, problems: int, processes: int, threads: int) -> None:
    """Exports and answers the base, then `default` and the chosen variant of one seed as they are trained."""
    for job_name in (BASE, "default", CHOSEN):
        name, adapter = BASE, None
        while job_name != BASE and adapter is None:
            job = next((j for j in driver.jobs if j.name == job_name), None)
            chosen = driver.arm_name(job) if job else None
            if job and chosen:
                folder = lab.trained_folder(chosen, job.seed)
                name = f"{chosen}-seed-{job.seed}"
                if (folder / "result.json").is_file():
                    adapter = folder / "checkpoints"
                    continue
            if job is None or job.status in ("failed", "left out") or not lab.budget.seconds_left:
                _say(f"{job_name}: left out, it is not trained")
                break
            time.sleep(1)
        if job_name == BASE or adapter is not None:
            try:
                lab.budget.require(1, "export")  # no export is begun to be stopped
                answer(lab, name, export(lab, name, adapter), problems, processes, threads)
            except (Skipped, RuntimeError) as error:
                _say(f"{name}: {error}")


def _part(argv: list[str]) -> int:
    """One process: answers every so many-th problem that has no answer yet."""
    import answer_gguf
    from answers import prompt, read
    from transformers import AutoTokenizer

    gguf, test, base, path = map(Path, argv[:4])
    part, of, problems, threads, limit = map(int, argv[4:9])
    seconds = float(argv[9])
    adapter = Path(argv[10]) if len(argv) > 10 else None
    lines = [json.loads(line) for line in test.read_text().splitlines()][:problems]
    name = path.name.rsplit(".", 2)[0]
    done = {id_ for file in path.parent.glob(f"{name}.*.jsonl") for id_ in read(file)}
    # the same parts whenever a process looks: others write meanwhile
    mine: list[dict[str, Any]] = [p for p in lines[part::of] if p["id"] not in done]
    if mine:
        tokenizer = AutoTokenizer.from_pretrained(base)
        answer_gguf.answer_problems(
            gguf,
            mine,
            path,
            lambda question: prompt(question, None, tokenizer),
            answer_gguf.Sizes(SLOTS, threads, context=NUM_CTX, limit=limit, adapter=adapter),
            Budget(None if seconds == float("inf") else seconds / 60),
        )
    return 0


def _say(line: str) -> None:
    print(f"gguf {line}", flush=True)


if __name__ == "__main__":
    sys.exit(_part(sys.argv[1:]))
