"""Tokenizers with the chat templates of the families people fine-tune, as TRL ships them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import FAMILIES, template_text
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

#: How Qwen and Llama 3 split text: newlines stay together, digits apart (Qwen's).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture
def family(smollm2_tokenizer: Any) -> Callable[[str], Any]:
    """A tokenizer with the template and special tokens of a family, its split, SmolLM2's vocabulary."""

    def make(name: str) -> Any:
        tokenizer = copy.deepcopy(smollm2_tokenizer)
        if name == "smollm2":
            return tokenizer
        turns, end = FAMILIES[name]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.add_special_tokens({"additional_special_tokens": [*turns, end]})
        tokenizer.add_tokens(["<think>", "</think>"])  # text to a tokenizer: Qwen3 has them so
        tokenizer.add_special_tokens({"eos_token": end, "bos_token": "<|begin|>"})
        tokenizer.chat_template = template_text(name)
        return tokenizer

    return make


@pytest.fixture(scope="session")
def sentencepiece() -> Any:
    """A small tokenizer as Llama 2's and Mistral's: a space becomes `▁`, and one is put in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁?[^▁\n]+|▁"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    text = [
        "[INST] Q [/INST] USER: What is 2 + 2? ASSISTANT: The answer is 4. The sum is 4\nThe end"
    ] * 20
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
