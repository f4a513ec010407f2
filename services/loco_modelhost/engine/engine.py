"""One loaded GGUF: prompt tokens in, pieces of text out, through llama.cpp.

Uses llama.cpp's own functions and its compiled sampler chain: the high-level `llama_cpp.Llama`
copies the logits to Python for every token, which costs a small model a good part of its speed.
"""

import codecs
import ctypes
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import llama_cpp

from loco_modelhost.engine.session import OVERFLOW, EngineError, Facts, Session, Tokens
from loco_modelhost.requests.refusals import Refusal

#: Tokens evaluated at once. A cancelled request is noticed between two such pieces.
PIECE = 128


@llama_cpp.llama_log_callback
def _errors_only(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        os.write(2, text)


class Weights:
    """A GGUF in memory, shared by the engines that hold it and freed with the last of them.

    The file is mapped: processes that put different adapters on the same base share its pages.
    """

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        """Takes the paths, of a GGUF and of a LoRA on it; the first engine loads the files."""
        self._path = path
        self._adapter = adapter
        self._lora: Any = None
        self._lock = Lock()
        self._holders = 0
        self._model: Any = None

    def hold(self) -> Any:
        """llama.cpp's model, loaded if nobody held it.

        Raises:
            EngineError: the file can't be loaded.
        """
        with self._lock:
            if not self._holders:
                _start_backend()
                parameters = llama_cpp.llama_model_default_params()
                parameters.n_gpu_layers = -1
                self._model = llama_cpp.llama_model_load_from_file(
                    str(self._path).encode(), parameters
                )
                if not self._model:
                    raise EngineError(f"unable to load model: {self._path}")
                self._load_adapter()
            self._holders += 1
            return self._model

    def _load_adapter(self) -> None:
        if self._adapter is None:
            return
        self._lora = llama_cpp.llama_adapter_lora_init(self._model, str(self._adapter).encode())
        if not self._lora:
            llama_cpp.llama_model_free(self._model)
            raise EngineError(
                f"unable to load adapter: {self._adapter} does not fit the model {self._path}"
            )

    def put_on(self, context: Any) -> bool:
        """Has a context compute with the adapter, where there is one; False: it can't."""
        if self._adapter is None:
            return True
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._lora)
        scales = (ctypes.c_float * 1)(1.0)
        return not llama_cpp.llama_set_adapters_lora(context, adapters, 1, scales)

    def let_go(self) -> None:
        """Gives up one `hold`."""
        with self._lock:
            self._holders -= 1
            if not self._holders:
                llama_cpp.llama_model_free(self._model)  # and its adapter


class Engine:
    """One context of a model. Not thread-safe: `loco_modelhost.engine.child` gives each one thread."""

    def __init__(self, weights: Weights, context_length: int, *, threads: int) -> None:
        """Loads the weights, unless another engine has, and makes a context.

        Args:
            weights: the model.
            context_length: tokens of context, prompt and answer together.
            threads: CPU threads that compute.

        Raises:
            EngineError: the file can't be loaded or there is no memory for the context.
        """
        self._weights = weights
        model = weights.hold()
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.context_length = context_length
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context_length
        context.n_batch = min(PIECE, context_length)
        context.n_threads = context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, context)
        if not self._context:
            weights.let_go()
            raise EngineError(f"no memory for a context of {context_length} tokens")
        if not weights.put_on(self._context):
            llama_cpp.llama_free(self._context)
            weights.let_go()
            raise EngineError("unable to load adapter: llama.cpp does not apply it")
        self._memory = llama_cpp.llama_get_memory(self._context)
        vocabulary = self._vocabulary
        self.facts = Facts(
            bool(llama_cpp.llama_vocab_get_add_bos(vocabulary)),
            self._text(llama_cpp.llama_vocab_bos(vocabulary)),
            self._text(llama_cpp.llama_vocab_eos(vocabulary)),
        )
        self._prompt: list[int] = []  # what the context holds from its start, …
        self._ends: list[int] = []  # … and in which pieces it was evaluated

    def close(self) -> None:
        """Frees the context and its hold on the weights; the engine can't be used any more."""
        llama_cpp.llama_free(self._context)
        self._weights.let_go()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, with the BOS token where the model asks for one."""
        raw = text.encode()
        room = len(raw) + 2
        while True:
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self._vocabulary, raw, len(raw), ids, room, True, True)
            if count >= 0:
                return list(ids[:count])
            room = -count

    def cut(self, text: str, most: int | None, keep: int) -> Tokens:
        """The tokens of a prompt; of `most` or more its start and its end, as Ollama cuts silently.

        Args:
            text: the rendered prompt.
            most: tokens of the context; None: no cut.
            keep: tokens at the start that stay, and the BOS that the tokenizer adds.
        """
        ids = self.tokenize(text)
        if most is None or len(ids) < most:
            return Tokens(len(ids), ids)
        keep = max(0, min(keep + self.facts.adds_bos, most - 1))
        size = most - max((most - keep) // 2, 1)
        return Tokens(len(ids), ids[:keep] + ids[len(ids) - (size - keep) :])

    def detokenize(self, tokens: list[int]) -> str:
        """Text of token ids, control tokens spelled out.

        Raises:
            Refusal: the vocabulary has no such token (400); llama.cpp would abort.
        """
        count = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        if wrong := next((t for t in tokens if not 0 <= t < count), None):
            raise Refusal(400, f"context has token {wrong}; this model has {count}")
        return b"".join(self._piece(t, special=True) for t in tokens).decode(errors="replace")

    def embed(self, tokens: list[int]) -> list[float]:
        """The last token's hidden state after the last layer, before it becomes logits.

        Raises:
            Refusal: nothing to embed, or the model's kind has no such state (400).
            EngineError: llama.cpp failed.
        """
        if not tokens:
            raise Refusal(400, "the input has no tokens")
        self._prompt, self._ends = [], []  # what the context held goes
        llama_cpp.llama_memory_clear(self._memory, True)
        llama_cpp.llama_set_embeddings(self._context, True)
        try:
            for start in range(0, len(tokens), PIECE):
                self._decode(tokens[start : start + PIECE])
            state = llama_cpp.llama_get_embeddings_ith(self._context, -1)
            if not state:
                raise Refusal(400, "this model does not support embeddings")
            width = llama_cpp.llama_model_n_embd(llama_cpp.llama_get_model(self._context))
            return [float(x) for x in state[:width]]
        finally:
            llama_cpp.llama_set_embeddings(self._context, False)
            llama_cpp.llama_memory_clear(self._memory, True)

    def pieces(self, session: Session) -> Iterator[str]:
        """Generates until a stop string, an end token, the token limit or a cancel.

        Yields:
            text as it becomes certain: never half a character, never part of a stop string.

        Raises:
            Refusal: the prompt leaves no room in the context (400).
            EngineError: llama.cpp failed.
        """
        if len(session.tokens) >= session.context_length:
            raise Refusal(400, OVERFLOW)
        sampler = self._sampler(session)
        try:
            started = time.monotonic_ns()
            self._evaluate_prompt(session)
            prompt_done = time.monotonic_ns()
            session.tally.prompt_tokens = len(session.tokens)
            session.tally.prompt_ns = prompt_done - started
            yield from self._generate(session, sampler)
            session.tally.generated_ns = time.monotonic_ns() - prompt_done
        finally:
            llama_cpp.llama_sampler_free(sampler)

    def _evaluate_prompt(self, session: Session) -> None:
        """Evaluates what the context doesn't hold yet.

        A prompt cut into other pieces gives logits that differ in their last bits, which can flip a
        greedy answer. So the pieces depend on the prompt alone, and only whole pieces are kept from the
        prompt before: the same question gives the same answer, whatever was asked before it.
        """
        tokens, ends = session.tokens, self._piece_ends(session.tokens)
        kept = [0]
        for old, new in zip(self._ends, ends[:-1], strict=False):
            if old != new or self._prompt[kept[-1] : old] != tokens[kept[-1] : new]:
                break
            kept.append(new)
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, kept[-1], -1):
            kept = [0]  # some architectures can't forget a part
            llama_cpp.llama_memory_clear(self._memory, True)
        self._prompt, self._ends = tokens, kept[1:]
        for start, end in pairwise([kept[-1], *ends[len(kept) - 1 :]]):
            if session.cancelled.is_set():
                return
            self._decode(tokens[start:end])
            self._ends.append(end)

    def _piece_ends(self, tokens: list[int]) -> list[int]:
        """Where the pieces of a prompt end: the first turn, mostly the system prompt, is its own."""
        is_end = llama_cpp.llama_vocab_is_eog
        first = next((i + 1 for i, t in enumerate(tokens) if is_end(self._vocabulary, t)), 0)
        ends = {*range(PIECE, first, PIECE), first, *range(first + PIECE, len(tokens), PIECE)}
        return sorted((ends | {len(tokens)}) - {0})

    def _generate(self, session: Session, sampler: Any) -> Iterator[str]:
        limit = session.context_length - len(session.tokens)
        if session.options.num_predict >= 0:
            limit = min(limit, session.options.num_predict)
        tally, text = session.tally, StopFilter(session.options.stop)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tally.done_reason = "length"
        while tally.generated_tokens < limit and not session.cancelled.is_set():
            token = llama_cpp.llama_sampler_sample(sampler, self._context, -1)
            tally.generated_tokens += 1
            if llama_cpp.llama_vocab_is_eog(self._vocabulary, token):
                tally.done_reason = "stop"
                break
            certain = text.add(decoder.decode(self._piece(token, special=False)))
            if certain:
                yield certain
            if text.stopped:
                tally.done_reason = "stop"
                return
            if tally.generated_tokens < limit:
                self._decode([token])
        rest = text.add(decoder.decode(b"", True)) + text.flush()
        if rest:
            yield rest

    def _decode(self, tokens: list[int]) -> None:
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        code = llama_cpp.llama_decode(
            self._context, llama_cpp.llama_batch_get_one(ids, len(tokens))
        )
        if code:
            self._prompt, self._ends = [], []
            llama_cpp.llama_memory_clear(self._memory, True)
            raise EngineError(f"llama_decode failed with code {code}")

    def _text(self, token: int) -> str:
        return self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 32
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(
                self._vocabulary, token, buffer, size, 0, special
            )
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _sampler(self, session: Session) -> Any:
        """The chain of llama.cpp's server: penalties, top_k, typical_p, top_p, min_p, temperature."""
        options = session.options
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            llama_cpp.llama_sampler_chain_add(chain, sampler)

        if session.grammar:
            grammar = llama_cpp.llama_sampler_init_grammar(
                self._vocabulary, session.grammar.encode(), b"root"
            )
            if not grammar:
                llama_cpp.llama_sampler_free(chain)
                raise Refusal(400, "format can't be made into a grammar")
            add(grammar)
        if options.penalizes:
            last = options.repeat_last_n  # -1: of the whole context, as Ollama has it
            add(
                llama_cpp.llama_sampler_init_penalties(
                    llama_cpp.llama_vocab_n_tokens(self._vocabulary),
                    # it keeps room for so many
                    min(last, session.context_length) if last >= 0 else session.context_length,
                    options.repeat_penalty,
                    options.frequency_penalty,
                    options.presence_penalty,
                )
            )
        if options.temperature <= 0:
            add(llama_cpp.llama_sampler_init_greedy())
            return chain
        if options.top_k > 0:
            add(llama_cpp.llama_sampler_init_top_k(options.top_k))
        if options.typical_p < 1:
            add(llama_cpp.llama_sampler_init_typical(options.typical_p, 1))
        if options.top_p < 1:
            add(llama_cpp.llama_sampler_init_top_p(options.top_p, 1))
        if options.min_p > 0:
            add(llama_cpp.llama_sampler_init_min_p(options.min_p, 1))
        add(llama_cpp.llama_sampler_init_temp(options.temperature))
        seed = options.seed if options.seed >= 0 else int.from_bytes(os.urandom(4))
        add(llama_cpp.llama_sampler_init_dist(seed & 0xFFFFFFFF))
        return chain


class StopFilter:
    """Holds back text that may turn out to be the start of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(s for s in stops if s)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The text that is certain now; sets `stopped` when a stop string came."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            certain, self._held, self.stopped = self._held[: min(found)], "", True
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain

    def flush(self) -> str:
        """What was held back when the generation ended for another reason."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that starts a stop string."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def _start_backend() -> None:
    """Prepares llama.cpp (it does nothing the second time) and quiets its log."""
    llama_cpp.llama_log_set(_errors_only, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
