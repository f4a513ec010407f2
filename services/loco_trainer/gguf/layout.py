"""What a GGUF will hold, before any weight is read: metadata, and each tensor's type and place.

llama.cpp's converter gives names, shapes, metadata and rearrangements; llama.cpp's quantizer, in a
dry run over a file that is all hole, says which type it would give each tensor and in which order.
Runs with the converter's folder first on the path: `gguf` here is the converter's own.
"""

import ctypes
import os
import re
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Protocol

import gguf
import llama_cpp
import torch

from loco.contracts.errors import ExportFailed
from loco_trainer.gguf import ggml
from loco_trainer.merge.stored import Stored

_LINE = re.compile(
    r"\[ *\d+/ *\d+\] +(\S+) +- \[[^]]*\], type = +(\w+), size = +[\d.]+ MiB(?: -> .*? \((\w+)\))?"
)


class Load(Protocol):
    """Gives the converter's tensors their values."""

    #: Base weights that were read ahead, by name.
    ready: dict[str, torch.Tensor]

    def stored(self, file: str, offset: int) -> Stored:
        """The base's tensor that begins there."""

    def __call__(self, stored: Stored) -> torch.Tensor:
        """Its merged value."""


@dataclass(frozen=True)
class Planned:
    """One tensor of the file."""

    name: str
    source: str  # the type the converter's 16-bit file would give it: F32, F16 or BF16
    type: str  # its type in this file
    shape: tuple[int, ...]  # rows first, as torch has it
    offset: int  # of its first byte in the file
    #: The base's tensors it is made of.
    sources: tuple[Stored, ...]
    #: Whether it may be computed on a GPU: nothing in it is on the CPU already.
    any_device: bool
    _node: Any

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.shape[-1]

    @property
    def elements(self) -> int:
        """Numbers in all."""
        return prod(self.shape)

    def value(self) -> torch.Tensor:
        """Its numbers, computed anew from the base and the adapter."""
        value = _evaluate(self._node)
        return value if isinstance(value, torch.Tensor) else torch.from_numpy(value)


@dataclass(frozen=True)
class Header:
    """A GGUF whose head is written and whose data is not."""

    tensors: tuple[Planned, ...]
    data_bytes: int
    load: Load


def plan(
    folder: Path, target: Path, *, name: str, outtype: str, quantization: str, load: Load
) -> Header:
    """Writes the head of the GGUF and gives the file its full size.

    Args:
        folder: config, tokenizer and weights of the base under the names the converter looks for.
        target: the file to begin.
        name: `general.name`.
        outtype: `f16` or `bf16`, the converter's type for weights.
        quantization: `F16`, or what llama.cpp's quantizer is asked for.
        load: called for the tensors' values, later.

    Raises:
        ExportFailed: the converter does not know the architecture, or llama.cpp refuses the file.
    """
    with torch.inference_mode():
        model = converter_model(folder, target, name, outtype, load)
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
    infos: dict[str, Any] = model.gguf_writer.tensors[0]
    metadata: dict[str, Any] = model.gguf_writer.kv_data[0]
    sources = {tensor: _type_name(info.dtype) for tensor, info in infos.items()}
    if quantization != "F16":
        # llama.cpp sets these two anew, which moves them to the end
        version = metadata.pop(gguf.Keys.General.QUANTIZATION_VERSION)
        metadata[gguf.Keys.General.QUANTIZATION_VERSION] = version
        kind = metadata.pop(gguf.Keys.General.FILE_TYPE)
        kind.value = gguf.LlamaFileType[f"MOSTLY_{quantization}"].value
        metadata[gguf.Keys.General.FILE_TYPE] = kind
    packed = _packed(model, metadata)
    types = sources
    if quantization != "F16":
        types = _quantized_types(model, target, packed, quantization)
    if types.keys() != infos.keys():
        raise ExportFailed(
            f"llama.cpp found {len(types)} tensors, but the converter found {len(infos)}.",
            hint="llama-cpp-python and the converter do not match. Run `make setup`.",
        )
    final = {}
    for tensor, kind in types.items():
        shape = infos[tensor].shape
        size = prod(shape[:-1]) * ggml.row_bytes(kind, shape[-1])
        number = gguf.GGMLQuantizationType(ggml.TYPE_NUMBERS[kind])
        final[tensor] = gguf.gguf_writer.TensorInfo(tuple(shape), number, size)
    starts = _write_head(model, target, packed, final)
    planned = [
        _planned(tensor, sources[tensor], types[tensor], starts[tensor], infos[tensor])
        for tensor in final
    ]
    return Header(tuple(planned), sum(info.nbytes for info in final.values()), load)


def converter_model(folder: Path, target: Path, name: str, outtype: str, load: Load) -> Any:
    """The converter's model of a base; no weight of it is read.

    Raises:
        ExportFailed: the converter does not know the architecture.
    """
    conversion, base = import_module("conversion"), import_module("conversion.base")
    lazy = base.LazyTorchTensor

    def from_local_tensor(local: Any) -> Any:
        place = local.data_range
        stored = load.stored(Path(place.filename).name, place.offset)
        meta = lazy.meta_with_dtype_and_shape(lazy._dtype_str_map[local.dtype], local.shape)
        return lazy(meta=meta, args=(stored,), func=load)

    lazy.from_local_tensor = from_local_tensor
    hyperparameters = base.ModelBase.load_hparams(folder, False)
    architecture = base.get_model_architecture(hyperparameters, base.ModelType.TEXT)
    try:
        model_class = conversion.get_model_class(architecture)
    except NotImplementedError as error:
        raise ExportFailed(
            f"The GGUF converter does not know the architecture {architecture}.",
            hint="Choose a base model whose architecture llama.cpp supports.",
        ) from error
    kind = gguf.LlamaFileType[f"MOSTLY_{outtype.upper()}"]
    # layers that guess further tokens ahead know nothing of the adapter, and Ollama does not ask them
    model_class.no_mtp = True
    return model_class(folder, kind, target, model_name=name)


def _quantized_types(model: Any, target: Path, packed: bytes, quantization: str) -> dict[str, str]:
    """llama.cpp's type for each tensor, in the order in which it would write them."""
    hollow = target.with_suffix(".plan")
    _write_head(model, hollow, packed, model.gguf_writer.tensors[0])
    said: list[str] = []

    @llama_cpp.llama_log_callback
    def listen(_level: int, text: bytes, _data: Any) -> None:
        said.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = gguf.LlamaFileType[f"MOSTLY_{quantization}"].value
    parameters.dry_run = True
    code = llama_cpp.llama_model_quantize(os.fsencode(hollow), b"", ctypes.byref(parameters))
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(_quiet), ctypes.c_void_p(0))
    hollow.unlink()
    words = "".join(said)
    if code != 0:
        last = next((line for line in reversed(words.splitlines()) if line.strip()), "nothing")
        raise ExportFailed(
            f"llama.cpp cannot quantize this model to {quantization}: {last}",
            hint="The base model's architecture may be unknown to this llama.cpp.",
        )
    return {name: (after or before).upper() for name, before, after in _LINE.findall(words)}


def _quiet(_level: int, _text: bytes, _data: Any) -> None:
    """llama.cpp's log, once it has said what we asked."""


def _packed(model: Any, metadata: dict[str, Any]) -> bytes:
    """The metadata as a GGUF holds it; seconds for a large vocabulary, so it is done once."""
    pack = model.gguf_writer._pack_val
    return b"".join(
        pack(key, gguf.GGUFValueType.STRING, add_vtype=False)
        + pack(value.value, value.type, add_vtype=True, sub_type=value.sub_type)
        for key, value in metadata.items()
    )


def _write_head(model: Any, path: Path, packed: bytes, tensors: dict[str, Any]) -> dict[str, int]:
    """Writes all before the data, and a hole where that goes; returns each tensor's place."""
    writer = gguf.GGUFWriter(path=None, arch=model.gguf_writer.arch)
    writer.kv_data = model.gguf_writer.kv_data  # counted in the header
    writer.tensors = [tensors]
    writer.write_header_to_file(path=path)
    writer.fout[0].write(packed)
    writer.state = gguf.gguf_writer.WriterState.KV_DATA
    writer.write_ti_data_to_file()
    writer.close()
    pad = writer.ggml_pad
    place = pad(path.stat().st_size, writer.data_alignment)
    starts = {}
    for name, info in tensors.items():
        starts[name] = place
        place += pad(info.nbytes, writer.data_alignment)
    os.truncate(path, place)
    return starts


def _planned(name: str, source: str, kind: str, offset: int, info: Any) -> Planned:
    node = _before_rounding(info.tensor)
    leaves, any_device = _leaves(node)
    return Planned(name, source, kind, tuple(info.shape), offset, leaves, any_device, node)


def _type_name(number: Any) -> str:
    return gguf.GGMLQuantizationType(number).name


def _before_rounding(tensor: Any) -> Any:
    """The torch tensor the converter would round to its own type next, or a numpy array.

    Its last step is one numpy call (astype, or its own BF16), the one before it `torch.numpy()`.
    """
    lazy_numpy = gguf.LazyNumpyTensor
    if not isinstance(tensor, lazy_numpy):
        return tensor  # an array it has computed already
    unrounded = tensor._args[0]
    if isinstance(unrounded, lazy_numpy) and len(unrounded._args) == 1:
        inner = unrounded._args[0]
        if isinstance(inner, import_module("conversion.base").LazyTorchTensor):
            return inner
    return unrounded


def _leaves(node: Any) -> tuple[tuple[Stored, ...], bool]:
    """The base's tensors below a lazy one, and whether none of its parts has a device already."""
    if isinstance(node, Stored):
        return (node,), True
    if isinstance(node, gguf.LazyBase):
        if node._data is not None or isinstance(node, gguf.LazyNumpyTensor):
            return _leaves(node._args)[0], False
        return _leaves(node._args)
    if isinstance(node, (list, tuple)):
        below = [_leaves(part) for part in node]
        unique = dict.fromkeys(leaf for leaves, _ in below for leaf in leaves)
        return tuple(unique), all(free for _, free in below)
    return (), not hasattr(node, "dtype") or isinstance(node, type)


def _evaluate(node: Any) -> Any:
    """The value of a lazy tensor; unlike the converter's own, nothing of it is kept."""
    if not isinstance(node, gguf.LazyBase):
        return node
    if node._data is not None:
        return node._data
    arguments = gguf.LazyBase._recurse_apply(node._args, _evaluate)
    return node._func(*arguments, **node._kwargs)
