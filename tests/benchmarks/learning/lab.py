"""Where the study of own answers runs: its folder, its problems, its servers, its stage programs.

OUT/test.jsonl dev.jsonl train.jsonl      problems of GSM8K: measured, chosen by, trained on
OUT/prepare train eval/NAME/              what the stage programs wrote
OUT/answers/                              answers to eval questions, shared by all servers
OUT/results/ARM/seed-N/                   what is worth keeping, small
"""

import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import Request, urlopen

from arms import BASE, NUM_CTX, Arm, Model, Scale, arm, eval_spec, prepare_spec, train_spec

from loco.contracts.serving import Check
from loco.contracts.specs import BaseModelSpec, Inputs
from loco.contracts.stages import Stage
from programs import ROOT, Budget, own_environment, run_program

_JOB_ID = "20261128-000000-5e1f00"
#: Of the draw of development problems out of GSM8K's training problems.
_DEV_SEED = "development problems"
_READY_SECONDS = 300.0


@dataclass(frozen=True)
class Options:
    """How the study is run."""

    out: Path
    gsm8k: Path
    #: The bases: folders of weights, and the names under which they are served.
    folders: Mapping[Model, Path]
    served: Mapping[Model, str]
    #: Numbers of the GPUs; `cpu`: none.
    gpus: tuple[str, ...]
    test: int | None
    dev: int
    scale: Scale
    slots: int
    #: More of the server's options.
    serve: tuple[str, ...]


@dataclass
class Server:
    """A served base on one GPU."""

    process: "subprocess.Popen[bytes]"
    url: str
    #: Name of an adapter to its digest, of those it was given.
    adapters: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Lab:
    """The study's folder and servers; every method may be called from several threads."""

    def __init__(self, options: Options, budget: Budget) -> None:
        self.options, self.budget = options, budget
        self.out = options.out.absolute()
        self._servers: dict[tuple[str, Model], Server] = {}
        self._starting = threading.Lock()
        self._once: dict[str, threading.Lock] = {}

    def write_problems(self) -> None:
        """Writes the three files of problems, the same each time."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results").mkdir(parents=True, exist_ok=True)
        gsm8k = self.options.gsm8k
        test = _lines(gsm8k / "test.jsonl")[: self.options.test]
        train = _lines(gsm8k / "train.jsonl")
        chosen = Random(_DEV_SEED).sample(range(len(train)), self.options.dev)
        _write_items(self.out / "test.jsonl", "test", dict(enumerate(test, 1)))
        _write_items(self.out / "dev.jsonl", "train", {n + 1: train[n] for n in sorted(chosen)})
        (self.out / "train.jsonl").write_text("".join(f"{line}\n" for line in train))

    def base(self, model: Model) -> BaseModelSpec:
        """A base as the stage programs know it."""
        folder = str(self.options.folders[model].absolute())
        return BaseModelSpec(
            name=model,
            kind="folder",
            train=folder,
            merge=folder,
            ollama=self.options.served[model],
            parameters_billion=_billions(self.options.folders[model]),
        )

    def server(self, gpu: str, model: Model) -> Server:
        """The server of a base on a GPU; started the first time."""
        with self._starting:
            known = self._servers.get((gpu, model))
            if known is None:
                known = self._servers[gpu, model] = self._start(gpu, model)
        with known.lock:
            _wait_until_ready(known, self.out / f"serve-{model}-{gpu}.log")
        return known

    def close(self) -> None:
        """Ends the servers."""
        for server in self._servers.values():
            server.process.terminate()
        for server in self._servers.values():
            try:
                server.process.wait(10)
            except subprocess.TimeoutExpired:
                server.process.kill()

    def prepared(self, chosen: Arm, seed: int, gpu: str) -> Path:
        """The folder of what stage prepare wrote for an arm; arms of the same spec share it."""
        rows = self._rows(chosen, seed)
        spec = prepare_spec(
            chosen, self.base(chosen.model), self._questions, seed, rows, self.options.scale
        )
        kind = hashlib.sha256(spec.model_dump_json(exclude={"seed"}).encode()).hexdigest()[:8]
        return self._prepare(f"{kind}-seed-{seed}", spec, gpu, chosen.model)

    def pairs(self, chosen: Arm, seed: int, gpu: str) -> Path:
        """The pairs an arm trains on."""
        folder = self.prepared(chosen, seed, gpu)
        if chosen.pairs_of is not None:
            self.trained(chosen.pairs_of, seed, gpu)
            served = self.adapter(chosen.pairs_of, seed, gpu, chosen.model)
            base = self.base(chosen.model).model_copy(update={"ollama": served})
            # as it is served: what it was given while the base was asked is in it already
            own = {**(chosen.own or {}), "instruction": None}
            asked = Arm(own, chosen.examples, chosen.train, model=chosen.model)
            spec = prepare_spec(asked, base, self._questions, seed, None, self.options.scale)
            folder = self._prepare(f"{chosen.pairs_of}-seed-{seed}", spec, gpu, chosen.model)
        path = folder / "preference_data.jsonl"
        if chosen.pairs is None:
            return path
        part = folder / f"preference_data.{chosen.pairs}.jsonl"
        if not part.is_file():
            with path.open() as all_pairs:
                part.write_text("".join(islice(all_pairs, chosen.pairs)))
        return part

    def trained(self, name: str, seed: int, gpu: str) -> dict[str, Any]:
        """The result of stage train of an arm."""
        chosen, folder = arm(name), self.trained_folder(name, seed)
        with self._only_once(str(folder)):
            if (folder / "result.json").is_file():
                return _json(folder / "result.json")
            rows = self.prepared(chosen, seed, gpu) / "training_data.jsonl"
            files = {"prepare/training_data.jsonl": rows}
            if chosen.preference is not None:
                files["prepare/preference_data.jsonl"] = self.pairs(chosen, seed, gpu)
            checkpoints = sorted(
                folder.glob("checkpoints/checkpoint-*"),
                key=lambda c: -int(c.name.rpartition("-")[2]),
            )
            if not checkpoints and chosen.rows_of is not None:
                from rows_part import rows_checkpoint  # it imports torch

                self.trained(chosen.rows_of, seed, gpu)
                trained = self.trained_folder(chosen.rows_of, seed)
                checkpoints = [rows_checkpoint(trained, folder / "rows")]
            # a lock of its own: two small trainings share a GPU here on purpose
            inputs = self.inputs(files, locks=folder / "locks")
            inputs = inputs.model_copy(update={"resume": tuple(checkpoints)})
            spec = train_spec(chosen, self.base(chosen.model), seed, self.options.scale)
            self.budget.require(20, f"train {name} seed {seed}")
            return self.run(Stage.TRAIN, spec, inputs, folder, gpu)

    def trained_folder(self, name: str, seed: int) -> Path:
        """Where stage train of an arm writes."""
        return self.out / "train" / f"{name}-seed-{seed}"

    def adapter(self, name: str, seed: int, gpu: str, model: Model) -> str:
        """The name under which a GPU's server serves a trained adapter; it is given it first."""
        server, served = self.server(gpu, model), f"study-{name}:seed-{seed}"
        with server.lock:
            if served not in server.adapters:
                path = self.trained_folder(name, seed) / "checkpoints"
                _post(f"{server.url}/study/adapter", {"name": served, "path": str(path)})
                server.adapters[served] = _digests(server.url)[served]
        return served

    def measured(self, name: str, seed: int, gpu: str, sets: tuple[str, ...]) -> Path:
        """The folder of what stage eval wrote for an arm; the first set decides."""
        folder = self.out / "eval" / f"{name}-seed-{seed}-{sets[0]}"
        chosen = arm(name)
        if not (folder / "result.json").is_file():
            served = self.adapter(name, seed, gpu, chosen.model)
            prepared = self.prepared(chosen, seed, gpu)
            self.budget.require(10, f"eval {name} seed {seed}")
            self._measure(folder, served, gpu, chosen.model, sets, prepared)
        return folder

    def measured_base(
        self, part: int, of: int, gpu: str, sets: tuple[str, ...], model: Model
    ) -> Path:
        """Has the base answer a part of the problems, with and without instruction."""
        folder = self.out / "eval" / f"{BASE}-{model}-{sets[0]}-{part}"
        if not (folder / "result.json").is_file():
            lines = [line for name in sets for line in _lines(self.out / f"{name}.jsonl")]
            name = f"part-{model}-{sets[0]}-{part}"
            (self.out / f"{name}.jsonl").write_text("".join(f"{x}\n" for x in lines[part::of]))
            self._measure(folder, self.options.served[model], gpu, model, (name,), None)
        return folder

    def _measure(
        self,
        folder: Path,
        served: str,
        gpu: str,
        model: Model,
        sets: tuple[str, ...],
        prepared: Path | None,
    ) -> None:
        server = self.server(gpu, model)
        digests = _digests(server.url)
        registered = {
            "candidate": served,
            "digest": digests[served],
            "checks": [_is_its_own(served, digests, self.options.served[model])],
        }
        results: dict[Stage, dict[str, Any]] = {Stage.REGISTER: registered}
        files = {}
        if prepared is not None:
            results[Stage.PREPARE] = _json(prepared / "result.json")
            files["prepare/training_data.jsonl"] = prepared / "training_data.jsonl"
        inputs = self.inputs(files, host=server.url, results=results)
        spec = eval_spec(self.base(model), sets[0], sets[1:], self.options.scale)
        self.run(Stage.EVAL, spec, inputs, folder, gpu)

    def _prepare(self, name: str, spec: Any, gpu: str, model: Model) -> Path:
        folder = self.out / "prepare" / name
        with self._only_once(str(folder)):
            if not (folder / "result.json").is_file():
                host = self.server(gpu, model).url if spec.base_model else "http://127.0.0.1:9"
                self.budget.require(10, f"prepare {name}")
                self.run(Stage.PREPARE, spec, self.inputs({}, host=host), folder, gpu)
        return folder

    def run(
        self, stage: Stage, spec: Any, inputs: Inputs, folder: Path, gpu: str
    ) -> dict[str, Any]:
        visible = {"CUDA_VISIBLE_DEVICES": "" if gpu == "cpu" else gpu, "HF_HUB_OFFLINE": "1"}
        return run_program(stage, spec, inputs, folder, self.budget, visible)

    def _rows(self, chosen: Arm, seed: int) -> int | None:
        """The rows that another arm got, where this one is to have as many."""
        if chosen.as_many_as is None:
            return None
        folder = self.prepared(arm(chosen.as_many_as), seed, self.options.gpus[0])
        return int(_json(folder / "result.json")["kept"])

    @property
    def _questions(self) -> str:
        return str(self.out / "train.jsonl")

    def inputs(
        self,
        files: Mapping[str, Path],
        *,
        host: str = "http://127.0.0.1:9",
        results: Mapping[Stage, dict[str, Any]] | None = None,
        locks: Path | None = None,
    ) -> Inputs:
        return Inputs(
            job_id=_JOB_ID,
            adapter="study",
            adapter_dir=self.out,
            models_dir=self.out / "models",
            locks_dir=locks or self.out / "locks",
            dataset_dirs=(self.out,),
            ollama_host=host,
            files=dict(files),
            results=dict(results or {}),
            answers_dir=self.out / "answers",
        )

    def _only_once(self, key: str) -> threading.Lock:
        return self._once.setdefault(key, threading.Lock())

    def _start(self, gpu: str, model: Model) -> Server:
        port = _free_port()
        device = "cpu" if gpu == "cpu" else "cuda:0"
        visible = {"CUDA_VISIBLE_DEVICES": "" if gpu == "cpu" else gpu}
        command = [
            *(sys.executable, str(Path(__file__).parent / "serve_hf.py")),
            *("--model", str(self.options.folders[model])),
            *("--name", self.options.served[model], "--port", str(port), "--device", device),
            *("--slots", str(self.options.slots), "--max-length", str(NUM_CTX)),
            *self.options.serve,
        ]
        with (self.out / f"serve-{model}-{gpu}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=own_environment(visible),
            )
        return Server(process, f"http://127.0.0.1:{port}")


def _wait_until_ready(server: Server, log: Path) -> None:
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}; see {log}")
        try:
            with urlopen(f"{server.url}/api/version", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"no server answers at {server.url} after {_READY_SECONDS:.0f} s; see {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _digests(url: str) -> dict[str, str]:
    """Name to digest of all models of a server."""
    with urlopen(f"{url}/api/tags", timeout=60) as response:
        return {model["name"]: model["digest"] for model in json.load(response)["models"]}


def _is_its_own(served: str, digests: Mapping[str, str], base: str) -> dict[str, Any]:
    """What there is to prove of weights that were never exported: they are served, and are no others'."""
    same = [name for name, digest in digests.items() if digest == digests[served]]
    check = Check(
        name="served_adapter",
        passed=same == [served] or served == base,
        expected="an adapter of its own, merged into the base by the study's server",
        seen=f"digest {digests[served][:19]} of {', '.join(same)}",
    )
    return check.model_dump()


def _post(url: str, body: Mapping[str, str]) -> None:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=300) as response:
        response.read()


def _billions(folder: Path) -> float:
    """Parameters of 16-bit weights, from the size of their files."""
    return max(0.001, sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2e9)


def _write_items(path: Path, kind: str, problems: Mapping[int, str]) -> None:
    """GSM8K's lines as eval problems; the ID is the line's number."""
    with path.open("w") as file:
        for number, line in problems.items():
            problem = json.loads(line)
            answer = problem["answer"].rpartition("####")[2].strip()
            item = {"id": f"{kind}-{number}", "question": problem["question"], "answer": answer}
            file.write(json.dumps(item, ensure_ascii=False) + "\n")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
