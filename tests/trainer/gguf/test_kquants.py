"""The torch quantizers write llama.cpp's blocks, byte for byte."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from loco_trainer.gguf import ggml, kquants

TYPES = sorted(kquants.TYPES)


def odd_rows() -> torch.Tensor:
    """Zeros, one sign, constants, ties, an outlier, every size from 1e-12 to 1e3."""
    torch.manual_seed(1)
    rows = torch.cat(
        [
            torch.zeros(2, 512),
            torch.randn(2, 512).abs(),
            -torch.randn(2, 512).abs(),
            torch.full((2, 512), 0.5),
            torch.full((2, 512), -0.5),
            torch.randn(8, 512).sign() * 0.25,
            torch.randn(8, 512) * torch.logspace(-12, 3, 512),
            torch.randn(8, 512) * 1e-20,
        ]
    )
    rows[3, 100:164] = 0
    rows[4, 7] = 1000
    return rows


def assert_same(rows: torch.Tensor, tensor_type: str) -> None:
    expected = ggml.quantize(rows.contiguous(), tensor_type)
    found = kquants.quantize(rows, tensor_type)
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    size = kquants.TYPES[tensor_type][1]
    differ = (found.view(-1, size) != expected.view(-1, size)).any(1)
    assert not differ.any(), f"{int(differ.sum())} of {len(differ)} blocks differ"


@pytest.mark.parametrize("tensor_type", TYPES)
def test_random_weights(tensor_type: str) -> None:
    torch.manual_seed(0)
    assert_same(torch.randn(512, 512) * 0.02, tensor_type)
    assert_same((torch.randn(512, 512) * 0.02).bfloat16(), tensor_type)


@pytest.mark.parametrize("tensor_type", TYPES)
def test_odd_weights(tensor_type: str) -> None:
    assert_same(odd_rows(), tensor_type)


@pytest.mark.parametrize("tensor_type", TYPES)
@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.down_proj.weight", "model.layers.20.self_attn.v_proj.weight"]
)
def test_trained_weights(tensor_type: str, name: str, smollm2_dir: Path) -> None:
    with safe_open(smollm2_dir / "model.safetensors", framework="pt") as tensors:
        weight = tensors.get_tensor(name)
    rows = weight.reshape(-1)[: weight.numel() // 256 * 256].view(-1, 256)
    assert_same(rows[:1024], tensor_type)


def test_ggml_reads_16_bit_rows_as_the_numbers_they_are() -> None:
    rows = torch.randn(4, 256)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = rows.to(dtype)
        assert torch.equal(ggml.quantize(narrow, "Q5_0"), ggml.quantize(narrow.float(), "Q5_0"))


def test_row_sizes_are_ggmls() -> None:
    for tensor_type, (width, size, _) in kquants.TYPES.items():
        assert ggml.row_bytes(tensor_type, 4 * width) == 4 * size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tensor_type", TYPES)
def test_a_gpu_writes_the_same_blocks(tensor_type: str) -> None:
    torch.manual_seed(0)
    rows = torch.cat([torch.randn(4096, 512) * 0.02, odd_rows()])
    expected = ggml.quantize(rows, tensor_type)
    found = kquants.quantize(rows.cuda(), tensor_type).cpu()
    size = kquants.TYPES[tensor_type][1]
    same = (found.view(-1, size) == expected.view(-1, size)).all(1).float().mean()
    assert same > 0.999
