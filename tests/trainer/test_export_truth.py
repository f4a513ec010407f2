"""What is exported is what was trained: probabilities, texts, perplexity, tokenizer, and its RAM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loco.contracts.results import Perplexity, ValidationRow
from loco.contracts.specs import BaseModelSpec, ExportSpec, Inputs
from loco.contracts.stages import Stage
from loco_trainer import export
from loco_trainer.data import rows
from loco_trainer.data.template import Template
from loco_trainer.gguf import parent as gguf_file
from loco_trainer.gguf import perplexity
from loco_trainer.gguf.check import loaded

QUESTIONS = ["What is 15 + 27?", "What is the capital of France?", "Name three colours."]


class Exported:
    """SmolLM2 with a small adapter, exported, beside the HF model it must equal."""

    def __init__(self, spec: BaseModelSpec, base: Path, adapter: Path) -> None:
        self.spec, self.base, self.adapter = spec, base, adapter
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.template = Template.of(self.tokenizer, spec.system)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
        # the rounding to the base's own type is part of what was asked for
        self.model = merged.half().float().eval()

    def row(self, question: str, answer: str) -> rows.Row:
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        [row] = rows.encode(messages, self.template)
        return row

    def log_probabilities(self, row: rows.Row) -> torch.Tensor:
        with torch.no_grad():
            scores = self.model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        labels = torch.tensor(row.labels[1:])
        told = scores[:-1].gather(1, labels.clamp_min(0).view(-1, 1)).view(-1)
        return told[labels != rows.IGNORED]

    def inputs(self, template: Inputs, data: Path, lines: list[tuple[str, str]]) -> Inputs:
        """As train and prepare leave them: the rows and the trained model's losses on them."""
        data.write_text(
            "".join(
                json.dumps(
                    {
                        "conversations": [
                            {"role": "user", "content": question},
                            {"role": "assistant", "content": answer},
                        ]
                    }
                )
                + "\n"
                for question, answer in lines
            )
        )
        measured = []
        for question, answer in lines:
            told = self.log_probabilities(self.row(question, answer))
            loss = -float(told.mean())
            measured.append(ValidationRow(tokens=len(told), base_loss=loss, loss=loss))
        return template.model_copy(
            update={
                "files": {
                    "train/checkpoints/adapter_model.safetensors": self.adapter
                    / "adapter_model.safetensors",
                    "prepare/validation_data.jsonl": data,
                },
                "results": {Stage.TRAIN: {"validation": [m.model_dump() for m in measured]}},
            }
        )


@pytest.fixture(scope="module")
def exported(
    smollm2: BaseModelSpec,
    smollm2_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_adapter: Callable[..., Path],
) -> Exported:
    folder = tmp_path_factory.mktemp("adapter")
    adapter = make_adapter(smollm2_dir, folder, std=0.01)
    AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(folder)
    return Exported(smollm2, smollm2_dir, adapter)


LINES = [
    ("What is 12 + 30?", "12 + 30 = 42. The answer is 42"),
    ("Ann has 3 apples and buys 4. How many now?", "3 + 4 = 7. The answer is 7"),
    ("What is 25 % of 80?", "80 * 25 / 100 = 20. The answer is 20"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Name a colour.", "Blue is a colour. " * 30),
]


def run(
    exported: Exported, inputs: Inputs, out: Path, quantization: str, recorder: Any
) -> tuple[Path, Perplexity]:
    spec = ExportSpec.model_validate(
        {
            "base_model": exported.spec,
            "model_name": "locollm-truth",
            "quantization": quantization,
        }
    )
    out.mkdir()
    result = export.run(spec, exported.inputs(inputs, out / "rows.jsonl", LINES), out, recorder)
    assert result.perplexity is not None
    return out / result.gguf, result.perplexity


@pytest.mark.slow
def test_f16_is_the_hf_model_and_q4_k_m_says_what_it_costs(
    exported: Exported, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    gguf, same = run(exported, inputs, tmp_path / "f16", "F16", recorder)
    with loaded(gguf, context=1024) as model:
        for question, answer in LINES:
            row = exported.row(question, answer)
            found, expected = model.log_probabilities(row), exported.log_probabilities(row)
            assert found.shape == expected.shape
            # float16 activations and cache on one side, float32 on the other
            assert (found - expected).abs().max() < 0.05  # nats
        for question in QUESTIONS:
            prompt = exported.template.prompt([{"role": "user", "content": question}])
            ids = exported.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
            out = exported.model.generate(**ids, max_new_tokens=24, do_sample=False)
            text = exported.tokenizer.decode(
                out[0][ids.input_ids.shape[1] :], skip_special_tokens=True
            )
            assert model.answer(prompt, tokens=24)[0] == text
    assert same.rows == len(LINES)
    assert same.tokens == sum(
        sum(label != rows.IGNORED for label in exported.row(*line).labels[1:]) for line in LINES
    )
    assert abs(same.change) < 0.005
    _, coarse = run(exported, inputs, tmp_path / "q4", "Q4_K_M", recorder)
    assert coarse.trained == same.trained
    assert 0.001 < abs(coarse.change) < 0.2  # it costs something, and not the model
    print(f"perplexity change: F16 {same.change:+.4%}, Q4_K_M {coarse.change:+.4%}")


@pytest.mark.slow
def test_the_tokenizer_in_the_gguf_is_trainings(
    exported: Exported, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    gguf, _ = run(exported, inputs, tmp_path / "q8", "Q8_0", recorder)
    reader = GGUFReader(gguf)
    tokenizer = exported.tokenizer

    def field(key: str) -> Any:
        return reader.fields[f"tokenizer.{key}"].contents()

    embedded = field("chat_template")
    assert embedded.startswith("{#- locollm-truth, job ")
    assert embedded.endswith(tokenizer.chat_template), "the training's, with its head before it"
    assert field("ggml.bos_token_id") == tokenizer.bos_token_id
    assert field("ggml.eos_token_id") == tokenizer.eos_token_id
    assert field("ggml.padding_token_id") == tokenizer.pad_token_id
    tokens, kinds = field("ggml.tokens"), field("ggml.token_type")
    assert tokens == tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    control = {tokens[i] for i, kind in enumerate(kinds) if kind == 3}
    assert set(tokenizer.all_special_tokens) <= control
    with loaded(gguf) as model:
        assert {model._model.token_eos(), model._model.token_bos()} == {
            tokenizer.eos_token_id,
            tokenizer.bos_token_id,
        }
        for stop in exported.spec.stop:
            ids = model._model.tokenize(stop.encode(), add_bos=False, special=True)
            assert ids == [tokenizer.convert_tokens_to_ids(stop)]


def test_rows_training_left_out_are_left_out(
    exported: Exported, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    given = exported.inputs(inputs, tmp_path / "rows.jsonl", LINES)
    # training's max_length cut the last, longest row off
    measured = given.results[Stage.TRAIN]["validation"][:-1]
    given = given.model_copy(update={"results": {Stage.TRAIN: {"validation": measured}}})
    chosen = perplexity.choose(given, exported.template, size=10**8, emit=recorder)
    assert [len(row.input_ids) for row, _ in chosen._pairs] == [
        len(exported.row(*line).input_ids) for line in LINES[:-1]
    ]
    other = [row | {"tokens": row["tokens"] + 1} for row in measured]
    given = given.model_copy(update={"results": {Stage.TRAIN: {"validation": other}}})
    chosen = perplexity.choose(given, exported.template, size=10**8, emit=recorder)
    assert chosen._pairs == ()
    assert "validation rows differ from those of training" in recorder.of_type("log")[-1].message


@pytest.mark.slow
def test_ram_is_that_of_the_largest_tensors_not_of_the_model(
    tmp_path: Path,
    random_model: Callable[..., Path],
    make_adapter: Callable[..., Path],
    recorder: Any,
) -> None:
    """Eight times the layers, 370 MB more weights, and hardly more RAM."""
    from transformers import Qwen3ForCausalLM

    peaks, sizes = [], []
    for layers in (2, 16):
        folder = random_model(
            Qwen3ForCausalLM,
            tmp_path / f"{layers}-layers",
            "bfloat16",
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=128,
        )
        adapter = make_adapter(folder, tmp_path / f"lora-{layers}")
        job = gguf_file.Job(
            folder=str(folder),
            adapter=str(adapter),
            target=str(tmp_path / f"{layers}.gguf"),
            name="x",
            outtype="bf16",
            quantization="Q8_0",
            device="cpu",
        )
        peaks.append(gguf_file.write(job, recorder).peak_ram_bytes)
        sizes.append((folder / "model.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] > 350e6
    assert peaks[1] - peaks[0] < 0.5 * (sizes[1] - sizes[0])
    print(f"peak {peaks[0] / 1e9:.2f} GB, then {peaks[1] / 1e9:.2f} GB for {sizes[1] / 1e9:.2f} GB")
