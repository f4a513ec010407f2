"""Real models for the trainer's tests: SmolLM2-135M, and a two-layer toy that trains in seconds."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_cpus import take_own_cpus
from pydantic import BaseModel

from loco.contracts.program_events import StageEvent, parse_event
from loco.contracts.specs import BaseModelSpec, Inputs, StageRun, TrainSpec
from loco.contracts.stages import Stage
from loco.recipes import catalog
from loco.stage.program import Emitter
from loco_trainer.machine.threads import share_cpus

REPOSITORY = Path(__file__).parents[2]
MODELS = REPOSITORY / ".loco" / "test-models"

take_own_cpus()
share_cpus()  # torch is imported by the tests, before a stage could say so


class Recorder(Emitter):
    """An emitter that keeps what a stage said."""

    def __init__(self, *, stop_at_step: int | None = None) -> None:
        self._lines = io.StringIO()
        self._stop_at_step = stop_at_step
        super().__init__(self._lines)

    def progress(self, *, last: bool = False, **fields: Any) -> None:
        """As the real one, but keeps every step, and can ask for a stop at one of them."""
        super().progress(last=last or "step" in fields, **fields)
        if self._stop_at_step is not None and fields.get("step") == self._stop_at_step:
            self.request_stop()

    @property
    def events(self) -> list[StageEvent]:
        return [parse_event.validate_json(line) for line in self._lines.getvalue().splitlines()]

    def of_type(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.type == kind]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def smollm2() -> BaseModelSpec:
    """The catalog's entry."""
    return catalog.base_model(REPOSITORY / "adapters", "smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2_dir(smollm2: BaseModelSpec) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, unpacked once for all runs."""
    from loco_trainer.bases import find

    return find.resolve(smollm2, "merge", MODELS, Recorder())


@pytest.fixture(scope="session")
def random_model(smollm2_dir: Path) -> Callable[..., Path]:
    """A model of random weights with SmolLM2's tokenizer, saved as a Hugging Face folder.

    Called with a causal language model's class of transformers, the folder, the name of torch's type
    of the weights, and fields of the config.
    """
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)

    def make(architecture: Any, folder: Path, dtype: str, **shape: int) -> Path:
        config = architecture.config_class(
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            max_position_embeddings=1024,
            **shape,
        )
        torch.manual_seed(0)
        architecture(config).to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def toy_dir(random_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with SmolLM2's tokenizer: a step takes a fraction of a second."""
    from transformers import LlamaForCausalLM

    return random_model(
        LlamaForCausalLM,
        tmp_path_factory.mktemp("models") / "toy",
        "float16",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


@pytest.fixture(scope="session")
def small_qwen_dir(
    random_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random three-layer Qwen3 in bfloat16 whose rows are multiples of 256, as Qwen3-4B's are."""
    from transformers import Qwen3ForCausalLM

    return random_model(
        Qwen3ForCausalLM,
        tmp_path_factory.mktemp("models") / "small-qwen3",
        "bfloat16",
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )


@pytest.fixture(scope="session")
def convert() -> Callable[..., Path]:
    """llama.cpp's converter as its users run it: a Hugging Face folder to a 16-bit GGUF."""

    def run(folder: Path, target: Path, *, outtype: str, name: str = "x") -> Path:
        command = [sys.executable, "-m", "convert_hf_to_gguf", "--outtype", outtype]
        command += ["--model-name", name, "--outfile", str(target), str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(Path(sys.prefix) / "converter")}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return target

    return run


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """A LoRA on every linear layer of a base, B not zero, as PEFT saves it."""

    def make(base: Path, folder: Path, *, std: float = 0.02) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear")
        wrapped = get_peft_model(model, lora)
        torch.manual_seed(1)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
        wrapped.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def toy(toy_dir: Path) -> BaseModelSpec:
    return BaseModelSpec(
        name="toy",
        kind="folder",
        train=str(toy_dir),
        merge=str(toy_dir),
        ollama="toy",
        system="You answer sums.",
        stop=("<|im_end|>",),
        parameters_billion=0.003,
    )


@pytest.fixture
def training_data(tmp_path: Path) -> Path:
    """24 sums of different lengths, as prepare writes them."""
    path = tmp_path / "training_data.jsonl"
    path.write_text("".join(json.dumps(chat_row(i)) + "\n" for i in range(24)))
    return path


@pytest.fixture
def preference_data(tmp_path: Path) -> Path:
    """12 pairs of answers to sums, as prepare writes them."""
    path = tmp_path / "preference_data.jsonl"
    path.write_text("".join(json.dumps(preference_row(i)) + "\n" for i in range(12)))
    return path


def preference_row(i: int) -> dict[str, Any]:
    """A sum, and an answer that a model of two layers can tell from it."""
    a, b = 3 * i + 2, 5 * i + 1
    right, wrong = (
        [{"role": "assistant", "content": text}]
        for text in (f"{a} + {b} = {a + b}", f"I do not know about {a}.")
    )
    question = f"What is {a} + {b}?" + " Tell me." * (i % 3)
    return {"prompt": [{"role": "user", "content": question}], "chosen": right, "rejected": wrong}


def chat_row(i: int) -> dict[str, Any]:
    a, b = 3 * i + 2, 5 * i + 1
    question = f"What is {a} + {b}?" if i % 2 else f"Ann has {a} apples and gets {b}. How many now?"
    return {
        "conversations": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"{a} + {b} = {a + b}. The answer is {a + b}"},
        ]
    }


@pytest.fixture
def inputs(tmp_path: Path, training_data: Path) -> Inputs:
    return Inputs(
        job_id="20261122-143722-4f9a2c",
        adapter="math",
        adapter_dir=tmp_path,
        models_dir=MODELS,
        locks_dir=tmp_path / "locks",
        ollama_host="http://127.0.0.1:9",
        files={"prepare/training_data.jsonl": training_data},
    )


@pytest.fixture
def toy_spec(toy: BaseModelSpec) -> TrainSpec:
    """Three epochs of six steps each."""
    return TrainSpec.model_validate(
        {
            "base_model": toy,
            "engine": "peft",
            "load_in_4bit": False,
            "lora": {"r": 4, "alpha": 8, "target_modules": "all-linear", "dropout": 0.1},
            "learning_rate": 5e-3,
            "epochs": 3,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "max_length": 128,
            "seed": 7,
        }
    )


@pytest.fixture
def spec_file(tmp_path: Path, inputs: Inputs) -> Callable[..., Path]:
    """Writes the spec.json of an attempt."""

    def write(stage: Stage, spec: BaseModel, **changed: Any) -> Path:
        run = StageRun(
            stage=stage, spec=spec.model_dump(), inputs=inputs.model_copy(update=changed)
        )
        path = tmp_path / f"{stage}.json"
        path.write_text(run.model_dump_json())
        return path

    return write


def artifacts(result_files: dict[str, str], out: Path, stage: Stage) -> dict[str, Path]:
    """A stage's files as the inputs of the next one."""
    return {f"{stage}/{name}": out / path for name, path in result_files.items()}
