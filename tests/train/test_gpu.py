"""Stage train on an NVIDIA GPU: both engines, both precisions, a stop, too little memory.

.venv-train/bin/python -m pytest tests/train/test_gpu.py

The model is a small random Qwen3 with a tokenizer of bytes, so nothing is downloaded.
"""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loco.events import StageEvent, parse_event
from loco.results import TrainResult
from loco.specs import BaseModelSpec, TrainSpec
from loco.stages import Stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
needs_unsloth = pytest.mark.skipif(
    find_spec("unsloth") is None, reason="services/requirements/gpu.txt is not installed"
)
ENGINES = [pytest.param("unsloth", marks=needs_unsloth), "peft"]

SpecFile = Callable[..., Path]

_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def small_qwen(tmp_path_factory: pytest.TempPathFactory) -> BaseModelSpec:
    """A two-layer Qwen3 in bfloat16 whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "small-qwen"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(letters)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=1024,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return BaseModelSpec(
        name="small-qwen",
        kind="folder",
        train=str(folder),
        merge=str(folder),
        ollama="small-qwen",
        stop=("<|im_end|>",),
        parameters_billion=0.001,
    )


def recipe(base: BaseModelSpec, engine: str, *, four_bit: bool, **changed: Any) -> TrainSpec:
    """Three epochs of six steps each."""
    return TrainSpec.model_validate(
        {
            "base_model": base,
            "engine": engine,
            "load_in_4bit": four_bit,
            "lora": {"r": 8, "alpha": 16, "target_modules": "all-linear"},
            "learning_rate": 1e-2,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "max_length": 256,
            "seed": 7,
        }
        | changed
    )


@contextmanager
def program(spec: Path, out: Path, *, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Runs stage train in a process and folder of its own; `before` is Python that runs first."""
    out.mkdir()
    code = f"{before}\nimport runpy\nrunpy.run_module({Stage.TRAIN.program!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, "--spec", str(spec), "--out", str(out)]
    with (
        (out.parent / f"{out.name}.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=out) as child,
    ):
        try:
            yield child
        finally:
            child.kill()


def finish(spec: Path, out: Path) -> tuple[TrainResult, list[StageEvent]]:
    with program(spec, out) as child:
        assert child.stdout is not None
        events = [parse_event.validate_json(line) for line in child.stdout]
        assert child.wait() == 0, (out.parent / f"{out.name}.log").read_text()[-3000:]
    return TrainResult.model_validate_json((out / "result.json").read_bytes()), events


def losses(result: TrainResult) -> list[float]:
    return [step.loss for step in result.log]


@pytest.mark.parametrize("four_bit", [True, False], ids=["4-bit", "16-bit"])
@pytest.mark.parametrize("engine", ENGINES)
def test_it_learns_and_says_on_what(
    engine: str, four_bit: bool, small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    spec = recipe(small_qwen, engine, four_bit=four_bit)
    result, events = finish(spec_file(Stage.TRAIN, spec), tmp_path / "out")
    assert result.engine == engine
    assert result.device == torch.cuda.get_device_name(0)
    assert result.dtype == ("4-bit, computing in bfloat16" if four_bit else "bfloat16")
    assert len(result.log) == result.total_steps == 18
    assert all(math.isfinite(loss) for loss in losses(result))
    assert result.last_loss < 0.9 * result.first_loss
    steps = [e.progress for e in events if e.type == "progress" and e.progress.step is not None]
    assert steps[-1].step == 18  # others may be left out: at most ten a second are sent
    assert all(step.gpu_memory_gb and step.gpu_memory_gb > 0 for step in steps)
    assert result.peak_gpu_memory_gb == steps[-1].gpu_memory_gb
    adapter = load_file(tmp_path / "out" / "checkpoints" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in adapter.values()) == result.trainable_parameters
    # unsloth writes the modules it generates into the models folder, not where it was started
    assert not (tmp_path / "out" / "unsloth_compiled_cache").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_base_that_is_stored_in_4_bits_trains_as_one_that_is_quantized_when_loaded(
    engine: str, small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    stored = tmp_path / "quantized"
    quantize = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    AutoModelForCausalLM.from_pretrained(
        small_qwen.merge, quantization_config=quantize, dtype=torch.bfloat16, device_map={"": 0}
    ).save_pretrained(stored)
    AutoTokenizer.from_pretrained(small_qwen.merge).save_pretrained(stored)
    curves = []
    for name, train in (("loaded", small_qwen.train), ("stored", str(stored))):
        base = small_qwen.model_copy(update={"train": train})
        spec = recipe(base, engine, four_bit=True, max_steps=8)
        result, _ = finish(spec_file(Stage.TRAIN, spec), tmp_path / name)
        assert result.dtype == "4-bit, computing in bfloat16"
        curves.append(losses(result))
    assert curves[0] == pytest.approx(curves[1], rel=0.01)


@needs_unsloth
@pytest.mark.parametrize("four_bit", [True, False], ids=["4-bit", "16-bit"])
def test_both_engines_train_alike(
    four_bit: bool, small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    curves = []
    for engine in ("unsloth", "peft"):
        spec = recipe(small_qwen, engine, four_bit=four_bit, max_steps=8)
        curves.append(losses(finish(spec_file(Stage.TRAIN, spec), tmp_path / engine)[0]))
    assert curves[0] == pytest.approx(curves[1], rel=0.02)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stopped_run_resumes_to_the_same_end(
    engine: str, small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    spec = recipe(small_qwen, engine, four_bit=True, epochs=20)  # 120 steps
    whole, _ = finish(spec_file(Stage.TRAIN, spec), tmp_path / "whole")
    checkpoint = None
    with program(spec_file(Stage.TRAIN, spec), tmp_path / "a1") as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = parse_event.validate_json(line)
            if event.type == "progress" and event.progress.step == 4:
                child.send_signal(signal.SIGTERM)
            if event.type == "checkpoint":
                checkpoint = Path(event.path)
        assert child.wait() == 75
    assert checkpoint is not None
    resumed, _ = finish(spec_file(Stage.TRAIN, spec, resume=(checkpoint,)), tmp_path / "a2")
    assert resumed.resumed_from_step is not None
    assert 4 <= resumed.resumed_from_step < 120
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_too_little_memory_says_what_to_change(
    engine: str, small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    spec = recipe(small_qwen, engine, four_bit=False, batch_size=24, gradient_accumulation=1)
    megabytes = 24  # the model takes 2, a step of 24 rows more than the rest
    part = megabytes * 1e6 / torch.cuda.get_device_properties(0).total_memory
    cap = f"import torch; torch.cuda.set_per_process_memory_fraction({part!r})"
    with program(spec_file(Stage.TRAIN, spec), tmp_path / "out", before=cap) as child:
        assert child.stdout is not None
        last = [json.loads(line) for line in child.stdout][-1]
        assert child.wait() == 1
    assert last["type"] == "error"
    assert last["error"]["code"] == "out_of_memory"
    assert last["error"]["param"] == "train.batch_size"
    assert "Halve train.batch_size" in last["error"]["hint"]
