"""A GGUF loaded in llama.cpp: whether it answers, and how likely it holds given answers."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import torch

from loco.contracts.errors import ExportFailed
from loco_trainer.data.rows import IGNORED, Row
from loco_trainer.machine.threads import usable_cpus

#: Tokens evaluated at once: their logits are 4 bytes a word of the vocabulary, 156 MB for Qwen3.
_PIECE = 256


@contextmanager
def loaded(path: Path, *, context: int = 512, adapter: Path | None = None) -> Iterator["GgufModel"]:
    """Loads a GGUF and lets go of it.

    Args:
        path: the GGUF.
        context: longest text in tokens.
        adapter: a GGUF LoRA that is put on it.

    Raises:
        ExportFailed: llama.cpp cannot load a file.
    """
    try:
        model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=_PIECE,
            n_ubatch=_PIECE,
            n_threads=usable_cpus(),
            n_threads_batch=usable_cpus(),
            verbose=False,
        )
    except (ValueError, RuntimeError) as error:
        raise ExportFailed(
            f"llama.cpp cannot load {path.name}: {error}",
            hint="The attempt's log has llama.cpp's own words.",
        ) from error
    try:
        yield GgufModel(model, adapter)
    finally:
        model.close()


class Answered(NamedTuple):
    """What a model continued a prompt with."""

    text: str
    #: Whether the model ended it by itself.
    ended: bool
    #: Generated tokens, the one that ends excluded.
    tokens: int


class GgufModel:
    """A loaded GGUF."""

    def __init__(self, model: Any, adapter: Path | None = None) -> None:
        self._model = model
        if adapter:  # not by `Llama(lora_path=…)`, which goes on without one that does not fit
            scales = (ctypes.c_float * 1)(1.0)
            # it is freed with the model
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._fitting(adapter))
            if llama_cpp.llama_set_adapters_lora(model._ctx.ctx, adapters, 1, scales):
                raise _no_fit(adapter)

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer in the GGUF puts BOS before every prompt."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self._model._model.vocab))

    def require_fits(self, adapter: Path) -> None:
        """Raises unless llama.cpp takes a GGUF LoRA on this model, whose layers are named and shaped alike.

        Raises:
            ExportFailed: it does not.
        """
        llama_cpp.llama_adapter_lora_free(self._fitting(adapter))

    def _fitting(self, adapter: Path) -> Any:
        found = llama_cpp.llama_adapter_lora_init(self._model._model.model, os.fsencode(adapter))
        if not found:
            raise _no_fit(adapter)
        return found

    def served(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt as llama.cpp's server has them: BOS once.

        Args:
            prompt: text with the template's special tokens, BOS too where it writes one.
        """
        if self.adds_bos and (bos := self._model._model.token_bos()) >= 0:
            prompt = prompt.removeprefix(self._model._model.token_get_text(bos))
        ids: list[int] = self._model.tokenize(prompt.encode(), add_bos=True, special=True)
        return ids

    def answer(self, prompt: str, *, tokens: int, stop: Sequence[str] = ()) -> Answered:
        """Continues a rendered prompt greedily.

        Args:
            prompt: text with the template's special tokens.
            tokens: most tokens to generate.
            stop: texts that end the answer and are no part of it, as a server has them.
        """
        self._model.reset()  # nothing kept of another prompt: the same pieces, the same bits
        generated: list[int] = []
        for token in self._model.generate(self.served(prompt), temp=0.0, repeat_penalty=1.0):
            if llama_cpp.llama_vocab_is_eog(self._model._model.vocab, token):
                return Answered(self._text(generated), True, len(generated))
            generated.append(token)
            text = self._text(generated) if stop else ""
            if places := [place for s in stop if (place := text.find(s)) >= 0]:
                return Answered(text[: min(places)], True, len(generated))
            if len(generated) >= tokens:
                break
        return Answered(self._text(generated), False, len(generated))

    def log_probabilities(self, row: Row) -> torch.Tensor:
        """Log-probability of each answer token of a row, float32, on the CPU."""
        context = self._model._ctx
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context.ctx), True)
        vocabulary = self._model.n_vocab()
        batch = llama_cpp.llama_batch_init(_PIECE, 0, 1)
        found = []
        try:
            for start in range(0, len(row.input_ids) - 1, _PIECE):
                # the last token predicts nothing
                piece = row.input_ids[start : min(start + _PIECE, len(row.input_ids) - 1)]
                answers = row.labels[start + 1 : start + 1 + len(piece)]
                _fill(batch, piece, answers, start)
                if (code := llama_cpp.llama_decode(context.ctx, batch)) != 0:
                    raise ExportFailed(
                        f"llama.cpp could not evaluate a validation row (code {code}).",
                        hint="The attempt's log has llama.cpp's own words.",
                    )
                wanted = torch.tensor([t for t in answers if t != IGNORED])
                if not len(wanted):
                    continue
                logits = np.ctypeslib.as_array(
                    llama_cpp.llama_get_logits(context.ctx), shape=(len(wanted), vocabulary)
                )
                scores = torch.from_numpy(logits).log_softmax(1)
                found.append(scores.gather(1, wanted.view(-1, 1)).view(-1))
        finally:
            llama_cpp.llama_batch_free(batch)
        return torch.cat(found) if found else torch.empty(0)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._model.detokenize(list(tokens)).decode(errors="replace")
        return text


def _no_fit(adapter: Path) -> ExportFailed:
    return ExportFailed(
        f"llama.cpp cannot apply {adapter.name} to the model: its layers have other names "
        "or shapes.",
        hint="The attempt's log has llama.cpp's own words. `export.format: merged` does not need "
        "this file.",
    )


def _fill(batch: Any, piece: Sequence[int], answers: Sequence[int], start: int) -> None:
    """Writes tokens and places into llama.cpp's batch; logits only where an answer follows."""
    batch.n_tokens = len(piece)
    for place, token in enumerate(piece):
        batch.token[place] = token
        batch.pos[place] = start + place
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = 0
        batch.logits[place] = answers[place] != IGNORED
