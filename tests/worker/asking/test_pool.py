"""Questions that follow from answers, many at once, each sample kept apart."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loco.contracts.errors import OllamaUnavailable
from loco.serving.host import OllamaHost
from loco.stage.program import Stopped
from loco_worker.asking.answers import AnswerStore
from loco_worker.asking.pool import PATIENCE, Pool

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


def test_time_in_the_queue_of_a_slow_server_is_no_failure(
    answering: Any, tmp_path: Path, heard: Any
) -> None:
    turn = threading.Lock()

    def one_at_a_time(_: dict[str, Any]) -> tuple[str, str]:
        with turn:
            time.sleep(0.3)
        return "7", "stop"

    answering.answer = one_at_a_time
    store = AnswerStore(tmp_path / "answers", server_version="1", options={})
    with OllamaHost(answering.url, seconds=1.0) as host:
        pool = Pool[Drawn](host, store, {}, parallel=8, emit=heard.emit)
        got = list(pool.answers([Drawn(f"{n}?", 1) for n in range(10)]))
    assert len(got) == len(answering.asked) == 10


def test_a_server_that_says_nothing_is_given_up_in_words_of_its_own(
    answering: Any, tmp_path: Path, heard: Any
) -> None:
    release = threading.Event()
    answering.answer = lambda _: (str(release.wait(20)), "stop")
    store = AnswerStore(tmp_path / "answers", server_version="1", options={})
    with OllamaHost(answering.url, seconds=1.0) as host:
        pool = Pool[Drawn](host, store, {}, parallel=8, emit=heard.emit)
        started = time.monotonic()
        with pytest.raises(OllamaUnavailable, match="did not give any answer within") as caught:
            list(pool.answers([Drawn(f"{n}?", 1) for n in range(8)]))
        assert time.monotonic() - started < 1.0 + PATIENCE + 2
        assert "parallel below 8" in str(caught.value.hint)
        with pytest.raises(
            OllamaUnavailable, match="did not answer with small:1b within 1 s"
        ) as one:
            host.converse("small:1b", [{"role": "user", "content": "?"}], {})
        release.set()
    for error in (caught.value, one.value):
        assert error.retryable
        assert error.hint is not None
        assert error.hint.startswith("Ollama answers, but")
        assert "ollama serve" not in error.hint
