"""`latest` follows the ledger: late, after a crash, in a race, against a server that lies."""

import threading
import time
from collections.abc import Callable

import pytest
from tags_server import Tags
from versions import MODEL, Builder

from loco.contracts.errors import CandidateMissing, OllamaRefused, OllamaUnavailable
from loco.contracts.specs import JobSpec
from loco.ledger.ledger import Ledger
from loco.serving import latest
from loco.serving.latest import follow, follow_all

pytestmark = pytest.mark.redis

LATEST = f"{MODEL}:latest"


@pytest.fixture
def build(ledger: Ledger, spec: Callable[..., JobSpec]) -> Builder:
    return Builder(ledger, spec)


def promote(build: Builder, tags: Tags) -> str:
    """Builds, measures and promotes one whose candidate is in Ollama; answers its digest."""
    job = build.promoted()
    tags.models[f"{MODEL}:{job.id}"] = f"digest-{job.id}"
    return f"digest-{job.id}"


def served(ledger: Ledger) -> str | None:
    pointer = ledger.registry.promoted(MODEL)
    return pointer.served_digest if pointer else None


def test_the_candidate_becomes_latest_and_is_seen_to_be(ledger, build, tags):
    digest = promote(build, tags)
    pointer = follow(ledger, tags.url, MODEL)
    assert tags.models[LATEST] == digest
    assert pointer is not None
    assert pointer.served_digest == digest
    assert pointer.served_at is not None
    assert ledger.registry.undeployed() == []


def test_following_twice_copies_once(ledger, build, tags):
    promote(build, tags)
    follow(ledger, tags.url, MODEL)
    follow(ledger, tags.url, MODEL)
    assert len(tags.copies) == 1


def test_what_somebody_else_made_of_latest_is_mended_by_promoting_again(ledger, build, tags):
    digest = promote(build, tags)
    follow_all(ledger, tags.url)
    tags.models[LATEST] = "foreign"
    follow_all(ledger, tags.url)
    assert tags.models[LATEST] == "foreign", "nothing was promoted: a name of others is left alone"
    ledger.registry.promote("math", 1, by="me", reason="", force=False)
    follow_all(ledger, tags.url)
    assert tags.models[LATEST] == digest


def test_a_crash_between_commit_and_copy_is_made_up_for(ledger, build, tags):
    """The commit stands; whoever looks next copies."""
    digest = promote(build, tags)
    assert LATEST not in tags.models
    assert ledger.registry.undeployed() == [MODEL]
    follow_all(ledger, tags.url)
    assert tags.models[LATEST] == digest


def test_a_crash_between_copy_and_record_is_made_up_for(ledger, build, tags, monkeypatch):
    digest = promote(build, tags)

    class KilledError(BaseException):
        """What no program can catch."""

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as killed:
        killed.setattr(type(ledger.registry), "deployed", die)
        with pytest.raises(KilledError):
            follow(ledger, tags.url, MODEL)
    assert tags.models[LATEST] == digest
    follow_all(ledger, tags.url)
    assert served(ledger) is None, "the killed one has its turn still"
    with ledger._connection.client() as client:  # a minute later
        client.delete(f"{ledger.namespace}:deploying:{MODEL}")
    follow_all(ledger, tags.url)
    assert served(ledger) == digest


def test_ollama_down_at_the_promotion_is_tried_again(ledger, build, tags, monkeypatch):
    monkeypatch.setattr(latest, "PAUSE", 0.1)
    digest = promote(build, tags)
    with pytest.raises(OllamaUnavailable):
        follow(ledger, "http://127.0.0.1:9", MODEL)
    follow_all(ledger, "http://127.0.0.1:9")  # logs only
    assert served(ledger) is None
    assert ledger.registry.promoted(MODEL).version == 1
    time.sleep(0.2)
    follow_all(ledger, tags.url)
    assert tags.models[LATEST] == digest


def test_a_copy_that_lies_is_noticed(ledger, build, tags):
    promote(build, tags)
    tags.models[LATEST] = "old"
    tags.lies = True
    with pytest.raises(
        OllamaRefused, match=r"reported a copy of .* has digest old instead of digest-"
    ):
        follow(ledger, tags.url, MODEL)
    assert served(ledger) is None
    tags.lies = False
    follow(ledger, tags.url, MODEL)
    assert served(ledger) == tags.models[LATEST]


def test_a_candidate_that_is_gone_or_another_is_not_copied(ledger, build, tags):
    digest = promote(build, tags)
    tags.models[LATEST] = "old"
    (candidate,) = [name for name in tags.models if name != LATEST]
    tags.models[candidate] = "swapped"
    with pytest.raises(CandidateMissing, match="not the registered model"):
        follow(ledger, tags.url, MODEL)
    del tags.models[candidate]
    with pytest.raises(CandidateMissing, match="no longer") as caught:
        follow(ledger, tags.url, MODEL)
    assert "loco setup math --version 1" in str(caught.value.hint)
    assert tags.models[LATEST] == "old"
    tags.models[candidate] = digest
    follow(ledger, tags.url, MODEL)
    assert tags.models[LATEST] == digest


def test_a_promotion_during_the_copy_wins(ledger, build, tags):
    """The copier finds out that its pointer is old, and copies the new one."""
    promote(build, tags)
    newer: list[str] = []

    def promote_another() -> None:
        tags.before_copy = lambda: None
        newer.append(promote(build, tags))

    tags.before_copy = promote_another
    follow(ledger, tags.url, MODEL)
    assert tags.models[LATEST] == newer[0]
    assert served(ledger) == newer[0]


def test_many_at_once_end_at_what_is_promoted(ledger, build, tags, connect):
    """Copiers that are slow, promotions in between: the last promotion serves, and nothing else."""
    digests = [promote(build, tags)]
    tags.before_copy = lambda: time.sleep(0.02)
    stop = threading.Event()

    def keep_following() -> None:
        own = connect()
        while not stop.is_set():
            follow_all(own, tags.url)

    threads = [threading.Thread(target=keep_following) for _ in range(4)]
    for thread in threads:
        thread.start()
    digests += [promote(build, tags) for _ in range(6)]
    deadline = time.monotonic() + 20
    while served(ledger) != digests[-1]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert tags.models[LATEST] == digests[-1]
    assert ledger.registry.undeployed() == []


def test_a_frozen_copier_cannot_leave_an_old_model(ledger, build, tags, monkeypatch):
    """It holds its turn until that runs out, and copies when a newer version serves already."""
    monkeypatch.setattr(latest, "PATIENCE", 0.3)
    promote(build, tags)
    frozen, thaw = threading.Event(), threading.Event()

    def freeze() -> None:
        tags.before_copy = lambda: None
        frozen.set()
        thaw.wait(20)

    tags.before_copy = freeze
    slow = threading.Thread(target=follow, args=(ledger, tags.url, MODEL))
    slow.start()
    assert frozen.wait(10)
    newer = promote(build, tags)
    time.sleep(0.4)
    follow(ledger, tags.url, MODEL)
    assert tags.models[LATEST] == newer
    thaw.set()
    slow.join(20)
    assert [source for source, _ in tags.copies][-1] == f"{MODEL}:{newer.removeprefix('digest-')}"
    assert tags.models[LATEST] == newer
