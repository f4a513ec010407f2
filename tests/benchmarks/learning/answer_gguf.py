"""Greedy answers of a GGUF by llama.cpp, several problems at once; needs no GPU.

Sequences share the batch of each `llama_decode`: where one ends, the next problem takes its place.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from answers import MAX_TOKENS, prompt, read, written_to
from stage_runs import base_folder, export
from transformers import AutoTokenizer

from loco_trainer.machine.threads import usable_cpus
from programs import Budget, Skipped
from recipes import Study

#: Tokens of a sequence: the longest test prompt (218) and answer fit.
CONTEXT = 512
#: Tokens evaluated at once.
BATCH = 512
#: Sequences at once unless the caller says otherwise. Measured on a CPU, tokens a core-second: 100 with
#: one, 160 with 4, 195 with 8, 170 with 12, 150 with 16.
SLOTS = 8


@llama_cpp.llama_log_callback
def _errors_only(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        os.write(2, text)


def answer(study: Study, name: str, at_once: int | None, budget: Budget) -> None:
    """Exports the model if need be and answers the test problems that have no answer yet.

    Args:
        study: its folder and problems.
        name: a trained recipe, or the base.
        at_once: sequences in the context; None: `SLOTS`.
        budget: ends between two tokens; what was being answered is left for the next run.

    Raises:
        Skipped: time ran out (what is answered is kept), or the recipe is not trained.
    """
    path = study.answers(name, "gguf")
    done = read(path)
    problems = [p for p in study.test_problems() if p["id"] not in done]
    if not problems:
        return
    budget.require(30, f"answer-gguf {name}")
    gguf = export(study, name, budget)
    tokenizer = AutoTokenizer.from_pretrained(base_folder(study))
    started = time.monotonic()
    answered = answer_problems(
        gguf,
        problems,
        path,
        lambda question: prompt(question, study.base.system, tokenizer),
        Sizes(slots=at_once or SLOTS, threads=usable_cpus()),
        budget,
    )
    print(
        f"answer-gguf {name}: {answered} answers in {time.monotonic() - started:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    if answered < len(problems):
        raise Skipped(f"answer-gguf {name}: {len(problems) - answered} left, the time is up")


@dataclass(frozen=True)
class Sizes:
    """How a GGUF answers."""

    #: Sequences at once.
    slots: int
    threads: int
    #: Tokens of a sequence, prompt and answer, and of an answer.
    context: int = CONTEXT
    limit: int = MAX_TOKENS
    #: A GGUF LoRA that is put on the model; None: the model alone.
    adapter: Path | None = None


def answer_problems(
    gguf: Path,
    problems: Iterable[dict[str, str]],
    path: Path,
    render: Callable[[str], str],
    sizes: Sizes,
    budget: Budget,
) -> int:
    """Answers problems until all are through or the time is up; returns how many.

    Args:
        gguf: the model.
        problems: `id`, `question`, `answer` of each.
        path: where the answers join earlier ones.
        render: from a question to the text that the model continues.
        sizes: how much at once.
        budget: ends between two tokens; what was being answered is left for the next run.
    """
    answered = 0
    model = Batched(gguf, sizes)
    try:
        waiting = iter(problems)
        with written_to(path) as say:
            while budget.seconds_left > 0:
                for problem in islice(waiting, model.free):
                    model.start(problem, render(problem["question"]))
                if not model.busy:
                    break
                for sequence in model.step():
                    text = model.text(sequence.tokens)
                    say(sequence.problem, text, len(sequence.tokens), ended=sequence.ended)
                    answered += 1
    finally:
        model.close()
    return answered


@dataclass
class Sequence:
    """One answer being written."""

    problem: dict[str, str]
    #: Its place in the context.
    slot: int
    #: Tokens to evaluate next: first the prompt, then the newest one.
    pending: list[int]
    #: Tokens evaluated.
    position: int = 0
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class Batched:
    """A GGUF that continues several prompts at once, greedily."""

    def __init__(self, path: Path, sizes: Sizes) -> None:
        self._sizes, slots, threads = sizes, sizes.slots, sizes.threads
        llama_cpp.llama_log_set(_errors_only, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = sizes.context * slots
        parameters.n_seq_max = slots
        parameters.n_batch = BATCH
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"no memory for {slots} sequences of {sizes.context} tokens")
        if sizes.adapter is not None:
            self._put_on(sizes.adapter)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._entries = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._slots = list(range(slots))
        self._running: list[Sequence] = []

    def _put_on(self, adapter: Path) -> None:
        lora = llama_cpp.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not lora:
            raise RuntimeError(f"llama.cpp cannot load {adapter}")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, scales):
            raise RuntimeError(f"{adapter} does not fit the model")

    def close(self) -> None:
        """Frees everything; an adapter goes with its model."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    @property
    def free(self) -> int:
        """Sequences that may be started."""
        return len(self._slots)

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return bool(self._running)

    def start(self, problem: dict[str, str], text: str) -> None:
        """Takes in a rendered prompt."""
        tokens = self._tokenize(text)
        if len(tokens) + self._sizes.limit > self._sizes.context:
            raise RuntimeError(
                f"problem {problem['id']} has {len(tokens)} tokens: raise the context"
            )
        self._running.append(Sequence(problem, self._slots.pop(), tokens))
        # llama.cpp computes neighbouring slots together, and others one after the other
        self._running.sort(key=lambda sequence: sequence.slot)

    def step(self) -> list[Sequence]:
        """Evaluates what is pending, as much as one batch holds, and returns ended sequences."""
        batch, used = self._batch, 0
        evaluated: list[tuple[Sequence, int]] = []
        for sequence in self._running:
            pending = sequence.pending
            if used + len(pending) > BATCH:
                continue  # waits a step; the others' prompts are through by then
            for token in pending:
                batch.token[used] = token
                batch.pos[used] = sequence.position
                batch.n_seq_id[used] = 1
                batch.seq_id[used][0] = sequence.slot
                batch.logits[used] = 0
                sequence.position += 1
                used += 1
            batch.logits[used - 1] = 1
            evaluated.append((sequence, used - 1))
        batch.n_tokens = used
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}")
        for sequence, place in evaluated:
            self._continue(sequence, place)
        over = [s for s in self._running if s.ended or len(s.tokens) >= self._sizes.limit]
        for sequence in over:
            self._running.remove(sequence)
            self._slots.append(sequence.slot)
            llama_cpp.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        return over

    def _continue(self, sequence: Sequence, place: int) -> None:
        logits = llama_cpp.llama_get_logits_ith(self._context, place)
        token = int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._entries,))))
        sequence.tokens.append(token)
        sequence.pending = [token]
        sequence.ended = bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    def text(self, tokens: list[int]) -> str:
        """The text of an answer, without control tokens."""
        return b"".join(self._piece(token) for token in tokens).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, 256, 0, False)
        return buffer.raw[: max(0, count)]

    def _tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 2))()
        count: Any = llama_cpp.llama_tokenize(
            self._vocabulary, raw, len(raw), ids, len(raw) + 2, False, True
        )
        return list(ids[:count])
