"""How much of a server's own speed stage eval uses: raw requests and the stage, side by side.

    .venv/bin/python tests/benchmarks/eval_throughput.py [--gguf FILE] [--limit 20] [--rounds 2]

Starts a model host as `loco up` does (or takes `--ollama URL`), makes base and candidate there (the
candidate from --gguf, what an export of profile `tiny` left; without it from the base's own file), and
asks both the benchmark and 100 generated problems with tiny's options. In each round every way does
so once, on the same machine in the same minutes:

- raw N: N threads of bare httpx posts over the whole list, connections kept; nothing is read of the answers;
- stage: `python -m loco_worker.eval`, with no answer known; its clock runs from the program's start.

`asking` is the part of the stage from its first question to its last answer. Figures are generated tokens a
second; the ratio is to the fastest raw way.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from loco.contracts.files import sha256_of
from loco.contracts.requests import JobRequest
from loco.contracts.results import EvalResult
from loco.contracts.specs import Inputs, JobSpec, StageRun
from loco.contracts.stages import Stage
from loco.recipes.resolve import resolve
from loco.serving.host import OllamaHost
from loco.stage.program import Emitter
from loco_worker.measuring.problems import problem_sets
from loco_worker.ollama.bases import fetch_base, wheel_gguf

ROOT = Path(__file__).resolve().parents[2]
CANDIDATE = "locollm-math-tiny:benchmark"


class Pass(NamedTuple):
    """All questions to both models, once."""

    seconds: float
    tokens: int

    @property
    def speed(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds


def main() -> None:
    """Prints a line a pass and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ollama", help="a server to use instead of a model host of its own")
    parser.add_argument("--gguf", type=Path, help="the candidate's GGUF")
    parser.add_argument("--limit", type=int, help="first problems of each set only")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--raw", type=int, nargs="*", default=[2, 4, 8], help="threads of raw load")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="eval-throughput-"))
    try:
        with _server(arguments.ollama, folder) as url:
            _measure(url, arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(url: str, arguments: argparse.Namespace, folder: Path) -> None:
    job = resolve(ROOT / "adapters", JobRequest(adapter="math", profile="tiny"))
    inputs = _inputs(url, folder)
    spec = job.eval.model_copy(update={"limit": arguments.limit})
    with open(os.devnull, "w", encoding="utf-8") as nothing, OllamaHost(url) as host:
        emit = Emitter(nothing)
        fetch_base(host, spec.base_model, emit)
        _create(host, arguments.gguf or wheel_gguf(), job)
        questions = [
            i.question for items in problem_sets(spec, inputs, emit).values() for i in items
        ]
    options = {
        "temperature": 0,
        "seed": 0,
        "num_ctx": spec.num_ctx,
        "num_predict": spec.num_predict,
    }
    models = (spec.base_model.ollama, CANDIDATE)
    ways: dict[str, Callable[[], tuple[Pass, Pass]]] = {
        f"raw {n}": lambda n=n: (_raw(url, models, questions, options, n),) * 2
        for n in arguments.raw
    }
    ways["stage"] = lambda: _stage(spec.model_dump(mode="json"), inputs, folder)
    for model in models:  # both are loaded before anything is timed
        _raw(url, (model,), questions[:2], options, 2)
    taken: dict[str, list[tuple[Pass, Pass]]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        for name, way in ways.items() if number % 2 == 0 else reversed(ways.items()):
            taken[name].append(way())
            whole, asking = taken[name][-1]
            print(
                f"round {number + 1} {name:<6} {whole.seconds:6.1f} s, asking {asking.seconds:6.1f} s, "
                f"{asking.tokens} tokens, {asking.speed:5.1f} a second",
                flush=True,
            )
    best = max(statistics.median(a.speed for _, a in taken[n]) for n in taken if n != "stage")
    print(f"\n{len(questions)} questions to each of 2 models, medians of {arguments.rounds}")
    print(f"{'':<8} {'whole':>8} {'asking':>8} {'tokens/s':>9} {'of the best raw':>16}")
    for name, passes in taken.items():
        whole = statistics.median(w.seconds for w, _ in passes)
        asking = statistics.median(a.seconds for _, a in passes)
        speed = statistics.median(a.speed for _, a in passes)
        print(f"{name:<8} {whole:>6.1f} s {asking:>6.1f} s {speed:>9.1f} {speed / best:>16.2f}")


def _raw(
    url: str, models: tuple[str, ...], questions: list[str], options: dict[str, Any], threads: int
) -> Pass:
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:

        def ask(asked: tuple[str, str]) -> int:
            body = {
                "model": asked[0],
                "messages": [{"role": "user", "content": asked[1]}],
                "stream": False,
                "think": False,
                "truncate": False,
                "options": options,
            }
            return int(http.post("/api/chat", json=body).raise_for_status().json()["eval_count"])

        started = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            tokens = sum(pool.map(ask, [(model, q) for model in models for q in questions]))
        return Pass(time.monotonic() - started, tokens)


def _stage(spec: dict[str, Any], inputs: Inputs, folder: Path) -> tuple[Pass, Pass]:
    out = Path(tempfile.mkdtemp(dir=folder))
    inputs = inputs.model_copy(update={"answers_dir": out / "answers"})
    file = out / "spec.json"
    file.write_text(StageRun(stage=Stage.EVAL, spec=spec, inputs=inputs).model_dump_json())
    command = [sys.executable, "-m", "loco_worker.eval", "--spec", str(file), "--out", str(out)]
    started = time.monotonic()
    begun = ended = started
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            told = json.loads(line).get("progress", {})
            if told.get("total_steps"):
                begun = time.monotonic() if told["step"] == 0 else begun
                ended = time.monotonic()
        assert process.wait() == 0
    seconds = time.monotonic() - started
    result = EvalResult.model_validate_json((out / "result.json").read_bytes())
    tokens = sum(c.base.tokens + c.candidate.tokens for c in result.comparisons)
    return Pass(seconds, tokens), Pass(ended - begun, tokens)


def _create(host: OllamaHost, gguf: Path, job: JobSpec) -> None:
    blob = f"sha256:{sha256_of(gguf)}"
    if not host.has_blob(blob):
        host.upload(gguf, blob, lambda _: None)
    base = job.register_.base_model
    parameters = {"stop": list(base.stop)} if base.stop else {}
    host.create(
        CANDIDATE,
        files={gguf.name: blob},
        system=base.system,
        parameters=parameters,
        status=lambda _: None,
    )


def _inputs(url: str, folder: Path) -> Inputs:
    return Inputs(
        job_id="benchmark",
        adapter="math",
        adapter_dir=ROOT / "adapters/math",
        models_dir=folder,
        locks_dir=folder,
        ollama_host=url,
        results={Stage.REGISTER: {"candidate": CANDIDATE}},
    )


@contextmanager
def _server(url: str | None, folder: Path) -> Iterator[str]:
    """The server asked for, else a model host of its own with as many slots as `loco up` gives it."""
    if url is not None:
        yield url
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    parallel = min(4, len(os.sched_getaffinity(0)))
    command = [str(ROOT / ".venv-train/bin/python"), "-m", "loco_modelhost", "--port", str(port)]
    command += ["--data-dir", str(folder / "store"), "--parallel", str(parallel)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                print(httpx.get(f"{url}/api/version", trust_env=False).json())
                break
            except httpx.TransportError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
