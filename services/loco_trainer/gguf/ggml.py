"""llama.cpp's quantizer functions, called row by row in the library llama-cpp-python brings.

The bytes are llama.cpp's own. The calls let go of the interpreter lock, so threads run side by side.
"""

import ctypes
from functools import cache
from pathlib import Path

import llama_cpp
import torch

#: Numbers of ggml's tensor types (`enum ggml_type` in ggml.h), by the names a GGUF shows.
TYPE_NUMBERS = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "BF16": 30,
}


def row_bytes(tensor_type: str, width: int) -> int:
    """Bytes of a row of `width` numbers."""
    return int(library().ggml_row_size(TYPE_NUMBERS[tensor_type], width))


def quantize(rows: torch.Tensor, tensor_type: str) -> torch.Tensor:
    """Encodes rows as GGUF blocks on the calling thread.

    Args:
        rows: [n, width] on the CPU, contiguous, float32, float16 or bfloat16.
        tensor_type: a key of `TYPE_NUMBERS` whose block divides the width.

    Returns:
        [n, bytes of a row], uint8.
    """
    ggml = library()
    height, width = rows.shape
    if rows.dtype != torch.float32:
        # not torch's own conversion: called from many threads, each would start a pool of its own
        widen = (
            ggml.ggml_bf16_to_fp32_row
            if rows.dtype == torch.bfloat16
            else ggml.ggml_fp16_to_fp32_row
        )
        single = torch.empty(rows.shape, dtype=torch.float32)
        widen(rows.data_ptr(), single.data_ptr(), rows.numel())
        rows = single
    encoded = torch.empty(height, row_bytes(tensor_type, width), dtype=torch.uint8)
    ggml.ggml_quantize_chunk(
        TYPE_NUMBERS[tensor_type], rows.data_ptr(), encoded.data_ptr(), 0, height, width, None
    )
    return encoded


@cache
def library() -> ctypes.CDLL:
    """The library of ggml, with the functions used here declared."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    name = next(folder.glob("*ggml-base.*"))
    loaded = ctypes.CDLL(str(name))
    loaded.ggml_row_size.restype = ctypes.c_size_t
    loaded.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *(ctypes.c_int64,) * 3,
        ctypes.c_void_p,
    ]
    for widen in (loaded.ggml_bf16_to_fp32_row, loaded.ggml_fp16_to_fp32_row):
        widen.restype = None
        widen.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return loaded
