"""Questions that follow from answers, many at once, each sample kept apart."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loco.serving.host import OllamaHost
from loco.stage.program import Stopped
from loco_worker.asking.answers import AnswerStore
from loco_worker.asking.pool import Pool

pytestmark = pytest.mark.redis


class Drawn(NamedTuple):
    """A sample of a question."""

    text: str
    seed: int | None
    model: str = "small:1b"
    digest: str = "sha-base"
    system: str | None = None

    @property
    def turns(self) -> Sequence[Mapping[str, str]]:
        return [{"role": "user", "content": self.text}]


@pytest.fixture
def pool(answering: Any, tmp_path: Path, heard: Any) -> Iterator[Callable[..., Pool[Drawn]]]:
    with OllamaHost(answering.url) as host:

        def make(parallel: int = 1) -> Pool[Drawn]:
            store = AnswerStore(tmp_path / "answers", server_version="1", options={})
            return Pool(host, store, {"top_p": 0.9}, parallel=parallel, emit=heard.emit)

        yield make


def test_more_at_once_than_an_http_client_holds_connections(pool: Any, answering: Any) -> None:
    answering.seconds = 2.0
    got = list(pool(parallel=150).answers([Drawn(f"{n}?", 1) for n in range(150)]))
    assert len(got) == 150
    assert answering.most_at_once > 110


def test_what_follows_from_an_answer_is_asked_before_the_rest(pool: Any, answering: Any) -> None:
    asking = pool()
    for answered in asking.answers([Drawn("a", 1), Drawn("b", 1), Drawn("c", 1)]):
        question = answered.question
        if question.seed < 3:
            asking.add(question._replace(seed=question.seed + 1))
    texts = [text for _, _, text in answering.asked]
    assert sorted(texts) == list("aaabbbccc")
    # one thread: while "a" is read the next one is on its way already
    assert texts.index("c") > 2

    again, known = pool(), []
    for answered in again.answers([Drawn("a", 1)]):
        known.append((answered.question.seed, answered.cached))
        if answered.question.seed < 4:
            again.add(answered.question._replace(seed=answered.question.seed + 1))
    assert known == [(1, True), (2, True), (3, True), (4, False)]


def test_the_seed_of_a_sample_is_sent(pool: Any, answering: Any) -> None:
    answering.answer = lambda body: (str(sorted(body["options"].items())), "stop")
    got = list(pool().answers([Drawn("a", 7), Drawn("a", None)]))
    assert {a.answer.text for a in got} == {"[('seed', 7), ('top_p', 0.9)]", "[('top_p', 0.9)]"}


def test_an_empty_sample_is_an_answer(pool: Any, answering: Any) -> None:
    answering.answer = lambda _: ("", "stop")
    list(pool().answers([Drawn("a", 7)]))
    assert [a.cached for a in pool().answers([Drawn("a", 7)])] == [True]


def test_a_stop_request_does_not_wait_for_a_long_answer(
    pool: Any, answering: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loco_worker.asking.pool.PATIENCE", 0.2)
    answers = pool(parallel=2).answers([Drawn(f"{n}?", 1) for n in range(9)])
    next(answers)
    answering.seconds = 4.0
    heard.emit.request_stop()
    started = time.monotonic()
    with pytest.raises(Stopped):
        list(answers)
    assert time.monotonic() - started < 3
