"""A Llama or Qwen2 model as the decoder runs it: fused weights, whole prompts at once, then token by token.

The layers are Hugging Face's (transformers' modeling_llama.py, modeling_qwen2.py), with q, k and v in
one product, gate and up in another, and a cache whose place is fixed, so a CUDA graph can hold a step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decode_ops import Ops, rotated
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from loco_trainer.merge.lora import Adapter
from loco_trainer.merge.stored import index

_TYPES = ("llama", "qwen2")
#: Linear layers an adapter may change, and the fused weight that holds each.
_FUSED = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate_up",
    "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}


@dataclass
class Layer:
    """The weights of a layer."""

    qkv: Tensor  # [(heads + 2 * kv heads) * dim, hidden]
    qkv_bias: Tensor | None
    o: Tensor  # [hidden, heads * dim]
    gate_up: Tensor  # [2 * intermediate, hidden]
    down: Tensor  # [hidden, intermediate]
    before: Tensor  # the norms before attention and before the MLP
    between: Tensor


@dataclass(frozen=True)
class Cache:
    """Keys and values of every slot, a tensor a layer: [slots, kv heads, length, dim]."""

    keys: list[Tensor]
    values: list[Tensor]


class Model:
    """Weights on one device, and the two ways to run them.

    Args:
        config: of transformers, model type llama or qwen2.
        tensor: a weight by its Hugging Face name.
        ops: as decode_ops.choose gives them.
        length: most tokens of a sequence.
        dtype: what is computed in.
        device: where.

    Raises:
        ValueError: another architecture, or a part of it that is not built here.
    """

    def __init__(
        self,
        config: Any,
        tensor: Callable[[str], Tensor],
        ops: Ops,
        *,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        _check(config)
        self.config, self.ops, self.length = config, ops, length
        self.dtype, self.device = dtype, device
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps

        def get(*names: str) -> Tensor:
            parts = [tensor(name).to(device=device, dtype=dtype) for name in names]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        self.embedding = get("model.embed_tokens.weight")
        tied = config.tie_word_embeddings
        self.head = self.embedding if tied else get("lm_head.weight")
        self.norm = get("model.norm.weight")
        self.layers = [self._layer(get, n) for n in range(config.num_hidden_layers)]
        self.table = self._table()
        #: Linear layers an adapter may change, by weight name: views of the fused weights.
        self.linear = {
            f"model.layers.{n}.{part}.weight": self._view(layer, part)
            for n, layer in enumerate(self.layers)
            for part in _FUSED
        }
        #: The base's own weights, once an adapter has been merged over them.
        self._pristine: dict[str, Tensor] = {}
        self._adapter: Adapter | None = None

    @classmethod
    def load(
        cls, folder: Path, ops: Ops, *, length: int, dtype: torch.dtype, device: torch.device
    ) -> "Model":
        """The model of a Hugging Face folder."""
        stored = index(folder)
        config = AutoConfig.from_pretrained(folder)
        return cls(
            config, lambda n: stored[n].read(), ops, length=length, dtype=dtype, device=device
        )

    def cache(self, slots: int) -> Cache:
        """An empty cache."""
        shape = (slots, self.kv_heads, self.length, self.dim)

        def empty() -> list[Tensor]:
            return [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.layers]

        return Cache(empty(), empty())

    def prompts(self, tokens: Tensor, lasts: Tensor, slots: Tensor, cache: Cache) -> Tensor:
        """Computes whole prompts and fills their slots of the cache.

        Filled up on the right, so that no mask is needed: causal attention never looks there, and
        the answer's own keys come in their place later.

        Args:
            tokens: [prompts, width], int64.
            lasts: [prompts], the place of each one's last token.
            slots: [prompts].
            cache: as `cache` gives it.

        Returns:
            The logits behind each prompt, [prompts, vocabulary].
        """
        count, width = tokens.shape
        group = self.heads // self.kv_heads
        turn = self.table[:width, None]
        x, delta = F.embedding(tokens, self.embedding).flatten(0, 1), None
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x, h = self.ops.add_norm(x, delta, layer.before, self.eps)
            qkv = F.linear(h, layer.qkv, layer.qkv_bias).view(count, width, -1, self.dim)
            turned = rotated(qkv[:, :, : -self.kv_heads], turn)
            query = turned[:, :, : self.heads].transpose(1, 2)
            key = turned[:, :, self.heads :].transpose(1, 2)
            value = qkv[:, :, -self.kv_heads :].transpose(1, 2)
            keys[slots, :, :width] = key
            values[slots, :, :width] = value
            out = F.scaled_dot_product_attention(
                query,
                key.repeat_interleave(group, dim=1),
                value.repeat_interleave(group, dim=1),
                is_causal=True,
            )
            x, delta = self._rest(layer, x, out.transpose(1, 2).reshape(count * width, -1))
        _, h = self.ops.add_norm(x, delta, self.norm, self.eps)
        rows = torch.arange(count, device=self.device) * width + lasts
        return F.linear(h[rows], self.head)

    def step(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, cache: Cache, span: int | None
    ) -> Tensor:
        """Computes one token a row.

        Args:
            tokens: [rows], int64.
            slots: [rows].
            positions: [rows], the token's place in its sequence.
            cache: of the slots.
            span: more than any position; None: the longest there may be.

        Returns:
            The logits behind each token, [rows, vocabulary].
        """
        x, delta = F.embedding(tokens, self.embedding), None
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x, h = self.ops.add_norm(x, delta, layer.before, self.eps)
            qkv = F.linear(h, layer.qkv, layer.qkv_bias).view(len(tokens), -1, self.dim)
            query = self.ops.rotate_store(qkv, self.table, keys, values, slots, positions)
            out = self.ops.attend(query, keys, values, slots, positions, span)
            x, delta = self._rest(layer, x, out)
        _, h = self.ops.add_norm(x, delta, self.norm, self.eps)
        return F.linear(h, self.head)

    def misfit(self, adapter: Adapter, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """Why an adapter can't be merged into this model; None: it can.

        Args:
            adapter: what `wear` would merge.
            shapes: weight name to what B @ A is, of every layer the adapter changes.
        """
        strange = [name for name in shapes if name not in self.linear]
        if strange or len(shapes) != len(adapter):
            return f"it changes {(strange or ['a layer without a name'])[0]}, which is not here"
        for name, shape in shapes.items():
            if shape != tuple(self.linear[name].shape):
                return f"{name} is {list(shape)} there and {list(self.linear[name].shape)} here"
        return None

    def wear(self, adapter: Adapter | None) -> None:
        """Merges an adapter into the weights in place; None: the base as it was.

        W + scale * B @ A in float32, then rounded, as the product merges.
        """
        if adapter is self._adapter:
            return
        if not self._pristine:
            self._pristine = {name: view.clone() for name, view in self.linear.items()}
        for name, view in self.linear.items():
            if adapter is not None and name in adapter:
                view.copy_(adapter.merged(name, self._pristine[name]))
            elif self._adapter is not None and name in self._adapter:
                view.copy_(self._pristine[name])
        self._adapter = adapter

    def _rest(self, layer: Layer, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """From attention to the end of a layer: the residual stream, and what is yet to be added."""
        x, h = self.ops.add_norm(x, F.linear(attended, layer.o), layer.between, self.eps)
        return x, F.linear(self.ops.gate(F.linear(h, layer.gate_up)), layer.down)

    def _layer(self, get: Callable[..., Tensor], n: int) -> Layer:
        at = f"model.layers.{n}"
        qkv = [f"{at}.self_attn.{p}_proj" for p in "qkv"]
        has_bias = self.config.model_type == "qwen2"
        return Layer(
            qkv=get(*(f"{p}.weight" for p in qkv)),
            qkv_bias=get(*(f"{p}.bias" for p in qkv)) if has_bias else None,
            o=get(f"{at}.self_attn.o_proj.weight"),
            gate_up=get(f"{at}.mlp.gate_proj.weight", f"{at}.mlp.up_proj.weight"),
            down=get(f"{at}.mlp.down_proj.weight"),
            before=get(f"{at}.input_layernorm.weight"),
            between=get(f"{at}.post_attention_layernorm.weight"),
        )

    def _view(self, layer: Layer, part: str) -> Tensor:
        """The rows of a fused weight that are one linear layer's."""
        fused: Tensor = getattr(layer, _FUSED[part])
        query, key, inner = self.heads * self.dim, self.kv_heads * self.dim, len(fused) // 2
        start, stop = {
            "self_attn.q_proj": (0, query),
            "self_attn.k_proj": (query, query + key),
            "self_attn.v_proj": (query + key, query + 2 * key),
            "mlp.gate_proj": (0, inner),
            "mlp.up_proj": (inner, 2 * inner),
        }.get(part, (0, len(fused)))
        return fused[start:stop]

    def _table(self) -> Tensor:
        """[length, dim]: cosines, then sines, of every position, by transformers' own frequencies."""
        rotary = LlamaRotaryEmbedding(self.config)
        angles = torch.outer(torch.arange(self.length).float(), rotary.inv_freq.float())
        table = torch.cat([angles.cos(), angles.sin()], dim=1) * rotary.attention_scaling
        return table.to(self.device)


def shapes(file: Path) -> dict[str, tuple[int, int]]:
    """Weight name to the shape of B @ A of a saved adapter, from its header."""
    found = {}
    with safe_open(file, framework="pt") as tensors:
        keys = set(tensors.keys())
        for key in keys:
            layer = key.removesuffix(".lora_A.weight")
            if layer != key and f"{layer}.lora_B.weight" in keys:
                a, b = (tensors.get_slice(f"{layer}.lora_{x}.weight").get_shape() for x in "AB")
                found[layer.removeprefix("base_model.model.") + ".weight"] = (b[0], a[1])
    return found


def _check(config: Any) -> None:
    wrong = [
        what
        for what, is_so in {
            f"model type {config.model_type}": config.model_type not in _TYPES,
            "sliding window": getattr(config, "use_sliding_window", False),
            "attention bias": config.model_type == "llama" and config.attention_bias,
            "MLP bias": getattr(config, "mlp_bias", False),
            f"activation {config.hidden_act}": config.hidden_act != "silu",
        }.items()
        if is_so
    ]
    if wrong:
        raise ValueError(
            f"The decoder has no {', '.join(wrong)}; it runs plain {' and '.join(_TYPES)}."
        )
