"""Source self against a real model: SmolLM2-135M answers short sums on our model host."""

from typing import Any

import httpx
import pytest

from loco.grading.answers import is_correct

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def test_a_base_s_own_answers(run: Any, sums: Any, model_host: str) -> None:
    asked = {"questions": sums(60), "temperature": 0.4, "num_predict": 24, "samples": 2}
    first = run("a", url=model_host, examples=4, validation=1, pairs=1, **asked)
    assert len(first.rows) == first.result.kept == 4
    for question, answer in first.rows:
        a, b = (int(n) for n in question.removeprefix("What is ").rstrip("?").split(" + "))
        assert is_correct(str(a + b), answer)
        assert answer.splitlines()[-1].startswith("The answer is ")
    assert first.result.validation == 1
    assert [set(pair) for pair in first.lines("preference_data.jsonl")] == [
        {"prompt", "chosen", "rejected"}
    ]
    samples = first.lines("samples.jsonl")
    assert len(samples) == first.sampling.questions
    assert {len(line["tries"]) for line in samples} == {2}, "pairs ask for every try"
    assert first.sampling.known == 0
    assert first.sampling.tokens_per_second
    # a trainer on the same GPU needs the memory (other tests of this session may have models loaded)
    resident = httpx.get(f"{model_host}/api/ps", trust_env=False).json()["models"]
    assert first.sampling.model not in [model["name"] for model in resident]

    again = run("b", url=model_host, examples=4, validation=1, pairs=1, **asked)
    assert again.sampling.known == again.sampling.asked == first.sampling.asked
    assert again.content == first.content
    assert again.sampling.tokens_per_second is None
