"""Generation through llama.cpp, against its own high-level API."""

import ctypes
from pathlib import Path

import llama_cpp
import pytest

from loco_modelhost.engine.engine import PIECE, Engine, StopFilter, Weights
from loco_modelhost.engine.session import EngineError, Session
from loco_modelhost.requests.options import Options
from loco_modelhost.requests.refusals import Refusal

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


class CountingEngine(Engine):
    """Counts the tokens it evaluates."""

    evaluated = 0

    def _decode(self, tokens):
        self.evaluated += len(tokens)
        super()._decode(tokens)


@pytest.fixture(scope="module")
def engine(weights_path: Path):
    engine = CountingEngine(Weights(weights_path), 1024, threads=2)
    yield engine
    engine.close()


def say(engine: Engine, prompt: str = PROMPT, **options: object) -> tuple[str, Session]:
    wanted = Options().updated({"temperature": 0, "num_predict": 24, **options})
    session = Session(engine.tokenize(prompt), wanted, 1024)
    return "".join(engine.pieces(session)), session


@pytest.fixture(scope="module")
def reference(weights_path: Path):
    """llama-cpp-python's own class, which shares no code of ours."""
    return llama_cpp.Llama(str(weights_path), n_ctx=1024, verbose=False)


def test_tokens_and_greedy_text_equal_llama_cpp(engine, reference):
    assert engine.tokenize(PROMPT) == reference.tokenize(
        PROMPT.encode(), add_bos=True, special=True
    )
    expected = reference.create_completion(
        engine.tokenize(PROMPT), max_tokens=24, temperature=0, repeat_penalty=1.0
    )
    assert say(engine)[0] == expected["choices"][0]["text"]


def test_same_answer_whatever_came_before(engine):
    first = say(engine)[0]
    say(engine, "Something else entirely.")
    assert say(engine)[0] == first
    assert say(engine)[0] == first


def test_counts(engine):
    text, session = say(engine, num_predict=5)
    tally = session.tally
    assert tally.prompt_tokens == len(engine.tokenize(PROMPT))
    assert tally.generated_tokens == 5
    assert tally.done_reason == "length"
    assert len(engine.tokenize(text)) == 5
    assert min(tally.prompt_ns, tally.generated_ns) > 100_000


def test_nothing_to_predict(engine):
    text, session = say(engine, num_predict=0)
    assert (text, session.tally.done_reason) == ("", "length")


def test_seed_decides_the_sample(engine):
    def sample(seed: int) -> str:
        return say(engine, temperature=1.5, top_k=0, top_p=1.0, seed=seed, num_predict=8)[0]

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_end_of_context_ends_the_answer(weights_path):
    engine = Engine(Weights(weights_path), 64, threads=1)
    session = Session(engine.tokenize(PROMPT), Options(temperature=0, stop=("\0",)), 24)
    "".join(engine.pieces(session))
    assert session.tally.prompt_tokens + session.tally.generated_tokens <= 24
    full = Session(list(range(100, 124)), Options(), 24)
    with pytest.raises(Refusal, match="longer than the context length"):
        list(engine.pieces(full))
    engine.close()


def logits(engine: Engine, prompt: str) -> bytes:
    """The raw logits after a prompt."""
    session = Session(engine.tokenize(prompt), Options(), 1024)
    engine._evaluate_prompt(session)
    size = llama_cpp.llama_vocab_n_tokens(engine._vocabulary) * 4
    return ctypes.string_at(llama_cpp.llama_get_logits_ith(engine._context, -1), size)


def test_kept_parts_change_no_bit(engine, weights_path):
    """Prompts that share a system prompt, a long start, or all, in both orders."""
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    long = system + "<|im_start|>user\n" + "one two three four " * 36
    prompts = [system + PROMPT, system + "<|im_start|>user\nHi", long + "A", long + "B", PROMPT]
    order = [0, 1, 0, 2, 3, 2, 4, 3, 1]
    warm = [logits(engine, prompts[i]) for i in order]
    fresh = {}
    for i in range(len(prompts)):
        other = Engine(Weights(weights_path), 1024, threads=1)
        fresh[i] = logits(other, prompts[i])
        other.close()
    assert [warm[n] == fresh[i] for n, i in enumerate(order)] == [True] * len(order)


def test_common_start_is_evaluated_once(engine):
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    say(engine, system + PROMPT, num_predict=1)
    before = engine.evaluated
    other = system + "<|im_start|>user\nHi"
    say(engine, other, num_predict=1)
    assert engine.evaluated - before < len(engine.tokenize(other)) - 6
    start = "one two three four " * 80
    say(engine, start + "A", num_predict=1)
    before = engine.evaluated
    say(engine, start + "B", num_predict=1)
    assert engine.evaluated - before <= PIECE


def test_an_answer_is_not_mistaken_for_a_prompt(engine, weights_path):
    """The tokens of an answer were evaluated one by one: a prompt that repeats them starts anew."""
    text = say(engine, num_predict=8)[0]
    other = Engine(Weights(weights_path), 1024, threads=1)
    assert logits(engine, PROMPT + text) == logits(other, PROMPT + text)
    other.close()


def test_cancelled_session_stops(engine):
    session = Session(engine.tokenize(PROMPT), Options(temperature=0, num_predict=500), 1024)
    pieces = engine.pieces(session)
    next(pieces)
    session.cancelled.set()
    assert len(list(pieces)) <= 1
    assert session.tally.generated_tokens < 5


def test_grammar(engine):
    session = Session(
        engine.tokenize(PROMPT), Options(temperature=0), 1024, 'root ::= "yes" | "no"'
    )
    assert "".join(engine.pieces(session)) in ("yes", "no")


def test_unreadable_file(tmp_path, weights_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(weights_path.read_bytes()[:100_000])
    with pytest.raises(EngineError, match="unable to load model"):
        Engine(Weights(path), 64, threads=1)


def test_characters_come_whole(engine):
    """An emoji is several tokens: no piece holds half of one."""
    prompt = "🎉🎊😀🎉🎊😀🎉🎊😀🎉🎊😀🎉🎊"
    session = Session(engine.tokenize(prompt), Options(temperature=0, num_predict=16), 1024)
    pieces = list(engine.pieces(session))
    assert any(ord(c) > 0xFFFF for c in "".join(pieces))
    assert not any("\ufffd" in piece for piece in pieces[:-1])


class TestStopFilter:
    def test_holds_back_a_possible_start(self):
        stops = StopFilter(("<|im_end|>",))
        assert stops.add("42 <|im") == "42 "
        assert stops.add("possible") == "<|impossible"
        assert not stops.stopped

    def test_cuts_at_the_first_stop(self):
        stops = StopFilter(("END", "\n\n"))
        assert stops.add("one\n") == "one"
        assert stops.add("\ntwo END") == ""
        assert stops.stopped
        assert stops.flush() == ""

    def test_gives_back_what_was_held(self):
        stops = StopFilter(("END",))
        assert stops.add("the EN") == "the "
        assert stops.flush() == "EN"
