"""Models with fused kernels in them compute what they did before, on an NVIDIA GPU.

.venv-train/bin/python -m pytest tests/trainer/test_gpu_kernels.py
"""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loco.planning.ways import PLAIN_DECODERS
from loco_trainer.fast import kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(
        find_spec("liger_kernel") is None, reason="services/requirements/gpu.txt is not installed"
    ),
]
_SHAPE = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def step(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("architecture", PLAIN_DECODERS)
def test_losses_and_gradients_stay(architecture: str, activation: str) -> None:
    torch.manual_seed(1)
    config = AutoConfig.for_model(architecture, **_SHAPE, hidden_act=activation)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").cuda()
    with torch.no_grad():  # norms of one hide a norm without its weight
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.mul_(3.0)
    ids = torch.randint(2, 320, (4, 60), device="cuda")
    before, wanted = step(model, ids)
    mlp = model.model.layers[0].mlp
    assert "forward" not in vars(mlp)
    kernels.install(model)
    assert ("forward" in vars(mlp)) == (activation == "silu")
    after, gradients = step(model, ids)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    for name, gradient in wanted.items():
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-4, f"{name}: {difference}"
