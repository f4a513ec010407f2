"""Stage train on an NVIDIA GPU: both engines, both precisions, a stop, too little memory.

.venv-train/bin/python -m pytest tests/trainer/test_gpu.py

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

from loco.contracts.program_events import StageEvent, parse_event
from loco.contracts.results import TrainResult
from loco.contracts.specs import BaseModelSpec, TrainSpec
from loco.contracts.stages import Stage

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


def qwen(folder: Path, **shape: int) -> BaseModelSpec:
    """A random Qwen3 in bfloat16 whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

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
        **shape,
        vocab_size=320,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=1024,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return BaseModelSpec(
        name=folder.name,
        kind="folder",
        train=str(folder),
        merge=str(folder),
        ollama=folder.name,
        stop=("<|im_end|>",),
        parameters_billion=0.001,
    )


@pytest.fixture(scope="session")
def small_qwen(tmp_path_factory: pytest.TempPathFactory) -> BaseModelSpec:
    """Two layers: a start takes longer than training it."""
    return qwen(
        tmp_path_factory.mktemp("models") / "small-qwen",
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )


@pytest.fixture(scope="session")
def wide_qwen(tmp_path_factory: pytest.TempPathFactory) -> BaseModelSpec:
    """91 million parameters: activations that count."""
    return qwen(
        tmp_path_factory.mktemp("models") / "wide-qwen",
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
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


@pytest.mark.parametrize("four_bit", [True, False], ids=["4-bit", "16-bit"])
@pytest.mark.parametrize("again", [True, False], ids=["recomputed", "kept"])
def test_recorded_passes_compute_what_launched_ones_do(
    again: bool, four_bit: bool, small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    curves = []
    for recorded in (False, True):
        spec = recipe(
            small_qwen,
            "peft",
            four_bit=four_bit,
            cuda_graphs=recorded,
            gradient_checkpointing=again,
        )
        result, _ = finish(spec_file(Stage.TRAIN, spec), tmp_path / f"recorded-{recorded}")
        assert result.plan.cuda_graphs == recorded
        assert result.plan.padding_free
        curves.append(losses(result))
    assert curves[0] == pytest.approx(curves[1], rel=0.005)


@pytest.mark.parametrize("four_bit", [True, False], ids=["4-bit", "16-bit"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "launched"])
def test_measuring_between_epochs_changes_no_step_and_the_best_adapter_is_kept(
    recorded: bool,
    four_bit: bool,
    small_qwen: BaseModelSpec,
    spec_file: SpecFile,
    training_data: Path,
    tmp_path: Path,
) -> None:
    """The rows to measure on are others than those trained on, so a high rate soon does harm."""
    other = tmp_path / "validation_data.jsonl"
    turns = [{"role": "user", "content": "Say QWERTY!"}, {"role": "assistant", "content": "ZXCVB."}]
    other.write_text(json.dumps({"conversations": turns}) + "\n")
    rows = {"prepare/training_data.jsonl": training_data}
    runs = []
    for name, files, select in (
        ("bare", rows, "last"),
        ("last", rows | {"prepare/validation_data.jsonl": other}, "last"),
        ("best", rows | {"prepare/validation_data.jsonl": other}, "best"),
    ):
        spec = recipe(small_qwen, "peft", four_bit=four_bit, cuda_graphs=recorded, select=select)
        result, _ = finish(spec_file(Stage.TRAIN, spec, files=files), tmp_path / name)
        adapter = load_file(tmp_path / name / "checkpoints" / "adapter_model.safetensors")
        runs.append((result, adapter))
    (bare, weights), (last, kept), (best, chosen) = runs
    assert losses(bare) == pytest.approx(losses(last), rel=0.005)
    assert all(torch.allclose(weights[n], kept[n], rtol=0.05, atol=5e-3) for n in weights)
    assert [v.step for v in last.validations] == [0, 6, 12, 18]
    assert last.selected_step == 18
    lowest = min(best.validations, key=lambda v: v.loss)
    assert (best.best_step, best.selected_step) == (lowest.step, lowest.step)
    assert best.validation_loss == pytest.approx(lowest.loss, rel=0.01)
    assert lowest.step < 18, "training on other rows does harm at this rate"
    assert not all(torch.equal(chosen[n], kept[n]) for n in chosen)


def test_layouts_and_splits_train_alike(
    small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    ways: list[dict[str, Any]] = [
        {"micro_batch": 1},
        {"micro_batch": 4, "padding_free": True},
        {"micro_batch": 4, "padding_free": False},
    ]
    curves = []
    for number, way in enumerate(ways):
        spec = recipe(small_qwen, "peft", four_bit=False, max_steps=8, **way)
        curves.append(losses(finish(spec_file(Stage.TRAIN, spec), tmp_path / str(number))[0]))
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
    assert curves[2] == pytest.approx(curves[0], rel=0.02)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stopped_run_resumes_to_the_same_end(
    engine: str, small_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    spec = recipe(small_qwen, engine, four_bit=True, epochs=200)  # 1200 steps
    whole, _ = finish(spec_file(Stage.TRAIN, spec), tmp_path / "whole")
    checkpoint = None
    with program(spec_file(Stage.TRAIN, spec), tmp_path / "a1") as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = parse_event.validate_json(line)
            if event.type == "progress" and event.progress.step:
                child.send_signal(signal.SIGTERM)
            if event.type == "checkpoint":
                checkpoint = Path(event.path)
        assert child.wait() == 75
    assert checkpoint is not None
    resumed, _ = finish(spec_file(Stage.TRAIN, spec, resume=(checkpoint,)), tmp_path / "a2")
    assert resumed.resumed_from_step is not None
    assert 1 <= resumed.resumed_from_step < 1200
    # with 4-bit weights and bfloat16 the tiniest difference grows over a thousand steps
    shared = resumed.resumed_from_step + 20
    assert losses(resumed)[:shared] == pytest.approx(losses(whole)[:shared], rel=1e-2)
    assert resumed.last_loss == pytest.approx(whole.last_loss, rel=0.2)


def cap(megabytes: float, *, told: bool) -> str:
    """Python that lets a process reserve so much GPU memory, and whether it can see that."""
    part = megabytes * 1e6 / torch.cuda.get_device_properties(0).total_memory
    lines = ["import torch", f"torch.cuda.set_per_process_memory_fraction({part!r})"]
    if not told:
        lines.append("torch.cuda.get_per_process_memory_fraction = lambda device=None: 1.0")
    return "; ".join(lines)


def test_a_shortage_is_met_with_smaller_passes_to_the_same_end(
    wide_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {"batch_size": 24, "gradient_accumulation": 1, "epochs": 8}
    # a rate at which it learns: with a higher one the loss jumps, and the smallest difference grows
    spec = recipe(wide_qwen, "peft", four_bit=False, learning_rate=1e-3, **changed)
    whole, _ = finish(spec_file(Stage.TRAIN, spec), tmp_path / "whole")
    # weights 182 MB; 24 rows a pass take about 500 MB more, a few rows much less
    with program(
        spec_file(Stage.TRAIN, spec), tmp_path / "short", before=cap(560, told=False)
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read()
        assert child.wait() == 0, (tmp_path / "short.log").read_text()[-3000:]
    short = TrainResult.model_validate_json((tmp_path / "short" / "result.json").read_bytes())
    assert [a.outcome for a in short.attempts[:-1]] == ["out_of_memory"] * (len(short.attempts) - 1)
    assert len(short.attempts) > 1
    assert short.attempts[-1].outcome == "finished"
    assert short.plan.micro_batch < 24
    assert short.plan.micro_batch * short.plan.accumulation == 24
    assert short.peak_gpu_memory_gb <= 0.56
    assert losses(short) == pytest.approx(losses(whole), rel=0.02)


#: Has every pass of a base in 16 bits run out of memory, as it would beside a larger model.
_NO_ROOM_FOR_16_BITS = """
from dataclasses import replace
import torch
from loco_trainer.engines import choose
real = choose.load
def load(*arguments):
    loaded = real(*arguments)
    def losses(batch):
        if not loaded.dtype.startswith("4-bit"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loaded.losses(batch)
    return replace(loaded, losses=losses)
choose.load = load
"""


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="gpu.txt is not installed")
def test_the_last_rung_loads_the_base_again_in_4_bits(
    wide_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    spec = recipe(wide_qwen, "peft", four_bit=True, learning_rate=1e-3, load_in_4bit=None)
    out = tmp_path / "out"
    with program(spec_file(Stage.TRAIN, spec), out, before=_NO_ROOM_FOR_16_BITS) as child:
        assert child.stdout is not None
        assert child.stdout.read()
        assert child.wait() == 0, (tmp_path / "out.log").read_text()[-3000:]
    result = TrainResult.model_validate_json((out / "result.json").read_bytes())
    tried = [(attempt.plan.precision, attempt.outcome) for attempt in result.attempts]
    assert tried[0] == ("bf16", "out_of_memory")
    assert tried[-1] == ("4bit", "finished")
    assert result.dtype.startswith("4-bit")
    # the 182 MB of weights in 16 bits are gone: beside them the others would not stay below
    assert result.attempts[-1].peak_memory_gb < result.attempts[0].peak_memory_gb
    assert result.last_loss < result.first_loss


def test_a_model_that_cannot_fit_says_what_to_change(
    wide_qwen: BaseModelSpec, spec_file: SpecFile, tmp_path: Path
) -> None:
    spec = recipe(wide_qwen, "peft", four_bit=False)
    for told in (True, False):
        out = tmp_path / f"told-{told}"
        with program(spec_file(Stage.TRAIN, spec), out, before=cap(100, told=told)) as child:
            assert child.stdout is not None
            last = [json.loads(line) for line in child.stdout][-1]
            assert child.wait() == 1
        assert last["type"] == "error"
        assert last["error"]["code"] == "out_of_memory"
        assert last["error"]["hint"]
