"""A sampled answer depends on its request alone: what source `self` builds its rows on."""

from concurrent.futures import ThreadPoolExecutor

import pytest

QUESTIONS = ("What is 15 + 27?", "Name a colour.", "Who are you?")
SEEDS = (11, 2_147_483_647)  # the largest a stage sends
MODEL = "smollm2:135m"


def sampled(host, question: str, seed: int, **options: object) -> tuple[str, str, int]:
    """Text, why it ended and tokens of an answer, with source self's options unless told otherwise."""
    wanted = {"temperature": 0.8, "top_p": 0.95, "seed": seed, "num_predict": 16, "num_ctx": 1024}
    answer = host.chat(MODEL, question, think=False, options={**wanted, **options})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["message"]["content"], body["done_reason"], body["eval_count"]


def all_sampled(host, at_once: int) -> list[tuple[str, str, int]]:
    """Every question with every seed, so many at a time."""
    asked = [(question, seed) for question in QUESTIONS for seed in SEEDS]
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(lambda a: sampled(host, *a), asked))


@pytest.fixture(scope="module")
def alone(own_host) -> list[tuple[str, str, int]]:
    """What a host that answers one at a time says."""
    return all_sampled(own_host, 1)


def test_another_seed_gives_another_text(alone):
    assert len({text for text, _, _ in alone}) == len(alone)


def test_again_after_other_prompts_and_in_a_larger_context(own_host, alone):
    """The slot holds another prompt then, and its context has grown."""
    sampled(own_host, "number " * 300, 1, num_ctx=2048, num_predict=2)
    assert all_sampled(own_host, 1)[::-1] == alone[::-1]
    backwards = [sampled(own_host, q, seed) for q in QUESTIONS[::-1] for seed in SEEDS[::-1]]
    assert backwards[::-1] == alone


def test_beside_others_and_after_a_restart(start_host, own_host, tmp_path, weights, alone):
    """More ask than it answers at once; then the host is another process on the same store."""
    host = start_host(tmp_path, "--parallel", "4")
    host.create(
        MODEL, weights, system=own_host.post("/api/show", {"model": MODEL}).json()["system"]
    )
    assert all_sampled(host, 6) == alone
    host.process.terminate()
    host.process.wait(30)
    assert all_sampled(start_host(tmp_path, "--parallel", "2"), 3) == alone


def test_what_is_left_out_is_ollamas_default(own_host):
    """top_k 40 and min_p 0; llama.cpp's own min_p would be 0.05."""

    def hot(**options: object) -> list[str]:
        wanted = {"temperature": 2.0, "top_p": 1.0, "num_predict": 16, **options}
        return [sampled(own_host, QUESTIONS[0], seed, **wanted)[0] for seed in range(3)]

    unset = hot()
    assert unset == hot(top_k=40, min_p=0.0)
    assert unset != hot(top_k=0)
    assert unset != hot(min_p=0.05)


@pytest.mark.parametrize("last", [64, -1, 2**40, 0])
def test_penalties_change_the_answer(own_host, last: int):
    """Each by itself; -1 looks back as far as the context goes, as does more than it holds, 0 at nothing."""
    question = "Write the word apple twenty times."

    def answer(**options: float) -> str:
        wanted = {"temperature": 0, "num_predict": 24, "repeat_last_n": last, **options}
        return sampled(own_host, question, 1, **wanted)[0]

    plain = answer()
    penalized = [
        answer(repeat_penalty=2.0),
        answer(presence_penalty=2.0),
        answer(frequency_penalty=2.0),
        answer(repeat_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5),
    ]
    assert [text != plain for text in penalized] == [last != 0] * len(penalized)
