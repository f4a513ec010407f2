"""GGUF files: written by llama.cpp's converter, quantized in-process, read back and tried.

Nothing is downloaded, compiled or installed here: the converter lies in its own folder of the
training venv (it brings a `gguf` module newer than PyPI's), the quantizer is in llama-cpp-python.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
from gguf import GGUFReader

from loco.errors import ExportFailed
from loco.program import Emitter
from loco.specs import Quantization
from loco_trainer.threads import usable_cpus

_FILE_TYPES: dict[Quantization, int] = {
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Contents:
    """What a GGUF says about itself."""

    #: Tensor type (`Q4_K`, `F32`, …) to number of tensors.
    tensor_types: dict[str, int]
    chat_template: str | None
    architecture: str
    #: Rows of the token embedding, and entries of the vocabulary: equal in a sound file.
    embedding_rows: int
    vocabulary: int

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(self.tensor_types.values())


def convert(folder: Path, target: Path, *, outtype: str, name: str, emit: Emitter) -> None:
    """Writes a Hugging Face folder as a 16-bit GGUF.

    Args:
        folder: config, weights and tokenizer (with the chat template to embed).
        target: the GGUF to write.
        outtype: `f16` or `bf16`.
        name: `general.name` of the GGUF.
        emit: asked whether to stop.

    Raises:
        ExportFailed: the converter is missing or refuses the model; carries its last words.
    """
    converter = Path(sys.prefix) / "converter"
    if not (converter / "convert_hf_to_gguf.py").is_file():
        raise ExportFailed(
            f"The GGUF converter is missing in {converter}.",
            hint="Run `make setup`; it installs services/requirements/converter.txt there.",
        )
    log = target.with_suffix(".convert.log")
    command = [sys.executable, "-m", "convert_hf_to_gguf", "--outtype", outtype]
    command += ["--model-name", name, "--outfile", str(target), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(converter), "HF_HUB_OFFLINE": "1"}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        ) as child,
    ):
        while child.poll() is None:
            if emit.stopping:
                child.kill()
            time.sleep(0.1)
    emit.check_stop()
    said = log.read_text(errors="replace")
    sys.stderr.write(said)
    log.unlink()
    if child.returncode != 0 or not target.is_file():
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no output")
        raise ExportFailed(
            f"The GGUF converter ended with code {child.returncode}: {last}",
            hint="The attempt's log has its whole output; the base model's architecture may be "
            "unknown to this converter.",
        )


def quantize(source: Path, target: Path, quantization: Quantization) -> None:
    """Quantizes a 16-bit GGUF with llama.cpp inside this process, on all its CPUs.

    Raises:
        ExportFailed: llama.cpp refuses.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = usable_cpus()
    parameters.ftype = _FILE_TYPES[quantization]
    code = llama_cpp.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)
    )
    if code != 0:
        raise ExportFailed(
            f"llama.cpp could not quantize to {quantization} (code {code}).",
            hint="The attempt's log has llama.cpp's own words.",
        )


def read(path: Path) -> Contents:
    """Reads types and metadata of a GGUF, not its weights."""
    reader = GGUFReader(path)
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    template = reader.get_field("tokenizer.chat_template")
    return Contents(
        tensor_types=dict(Counter(t.tensor_type.name for t in reader.tensors)),
        chat_template=template.contents() if template else None,
        architecture=_contents(reader, "general.architecture"),
        embedding_rows=int(embedding.shape[1]),
        vocabulary=len(reader.fields["tokenizer.ggml.tokens"].data),
    )


def answer(path: Path, prompt: str, *, tokens: int) -> tuple[str, bool]:
    """Loads a GGUF and continues a rendered prompt greedily.

    Args:
        path: the GGUF.
        prompt: text with the template's special tokens.
        tokens: most tokens to generate.

    Returns:
        The text, and whether the model ended it by itself.

    Raises:
        ExportFailed: llama.cpp cannot load the file.
    """
    try:
        model = llama_cpp.Llama(
            str(path),
            n_ctx=512,
            n_threads=usable_cpus(),
            verbose=False,
        )
    except (ValueError, RuntimeError) as error:
        raise ExportFailed(
            f"llama.cpp cannot load {path.name}: {error}",
            hint="The attempt's log has llama.cpp's own words.",
        ) from error
    try:
        ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
        generated: list[int] = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            if llama_cpp.llama_vocab_is_eog(model._model.vocab, token):
                return _text(model, generated), True
            generated.append(token)
            if len(generated) >= tokens:
                break
        return _text(model, generated), False
    finally:
        model.close()


def _text(model: Any, tokens: list[int]) -> str:
    text: str = model.detokenize(tokens).decode(errors="replace")
    return text


def _contents(reader: Any, key: str) -> str:
    return str(reader.fields[key].contents())


def _die_with_parent() -> None:
    """Runs in the converter before it starts: it must not outlive a killed stage program."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
