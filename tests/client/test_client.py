"""The client against the real API, a cut wire, and servers that are not what they seem."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from loco import Client
from loco.client import http
from loco.contracts.errors import (
    ArtifactChanged,
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    LocoError,
    NotFound,
    ServerUnreachable,
    StageGap,
    Unauthorized,
    UnknownAdapter,
    UnknownProfile,
)
from loco.contracts.files import sha256_of
from loco.contracts.jobs import JobEvent, JobStatus, StageStatus
from loco.contracts.stages import Stage
from loco.ledger.keys import Keys

pytestmark = pytest.mark.redis


@pytest.fixture
def client(live_api) -> Iterator[Client]:
    with Client(live_api.url) as client:
        yield client


def test_submit_answers_the_accepted_job(client):
    job = client.submit(
        "math", profile="tiny", train={"epochs": 2}, seed=7, priority=3, metadata={"for": "test"}
    )
    assert job.status is JobStatus.QUEUED
    assert [task.stage for task in job.stages] == list(Stage)
    assert (job.spec.train.epochs, job.spec.seed, job.priority) == (2, 7, 3)
    assert client.job(job.id) == job
    assert client.task(f"{job.id}-train").status is StageStatus.PENDING


def test_the_same_key_is_the_same_job_and_another_body_a_conflict(client):
    first = client.submit("math", profile="tiny", idempotency_key="nightly")
    assert client.submit("math", profile="tiny", idempotency_key="nightly").id == first.id
    with pytest.raises(IdempotencyConflict):
        client.submit("math", profile="tiny", seed=1, idempotency_key="nightly")
    assert [job.id for job in client.jobs()] == [first.id]


def test_a_lost_answer_makes_no_second_job(client, cable):
    cable.cut_after.append(10)
    with Client(cable.url) as shaky:
        job = shaky.submit("math", profile="tiny")
    posts = [head for head in cable.heads if head.startswith("POST")]
    assert len(posts) == 2
    assert [found.id for found in client.jobs()] == [job.id]


def test_a_retry_whose_answer_is_lost_is_not_sent_again(client, cable):
    job = client.submit("math", profile="tiny")
    client.cancel(job.id)
    cable.cut_after.append(10)
    with Client(cable.url) as shaky, pytest.raises(ServerUnreachable):
        shaky.retry(job.id)
    assert len([head for head in cable.heads if head.startswith("POST")]) == 1


def test_errors_are_the_classes_the_server_raised(client):
    with pytest.raises(UnknownAdapter, match="Adapters here: analysis, code, math") as unknown:
        client.submit("maths")
    assert unknown.value.param == "adapter"
    assert unknown.value.hint
    with pytest.raises(UnknownProfile):
        client.submit("math", profile="huge")
    with pytest.raises(StageGap):
        client.submit("math", profile="tiny", stages=["prepare", "export"])
    with pytest.raises(InvalidRequest, match="epochs"):
        client.submit("math", train={"epochs": -1})
    with pytest.raises(NotFound):
        client.job("20260101-000000-abcdef")
    job = client.submit("math", profile="tiny")
    with pytest.raises(Conflict):
        client.retry(job.id)


@pytest.mark.parametrize("job_id", ["", "..", "../jobs", "a/b", "ü?x=1#y"])
def test_a_strange_id_reaches_no_other_route(client, job_id):
    with pytest.raises((NotFound, InvalidRequest)):
        client.job(job_id)


def test_jobs_go_over_all_pages(client):
    made = [client.submit("math", profile="tiny").id for _ in range(5)]
    client.cancel(made[1])
    assert [job.id for job in client.jobs(page_size=2)] == made[::-1]
    assert [job.id for job in client.jobs(status="cancelled", page_size=1)] == [made[1]]
    assert list(client.jobs(adapter="chess")) == []


def test_wait_shows_every_event_and_answers_the_ended_job(client, hands):
    job = client.submit("math", profile="tiny", stages=["prepare", "train"])
    events: list[JobEvent] = []

    def work() -> None:
        claim = hands.claim(Stage.PREPARE)
        hands.progress(claim, step=1, total_steps=2)
        hands.commit(claim, {"kept": 3})
        hands.fail(hands.claim(Stage.TRAIN), "The loss is not a number.", "Lower the rate.")

    with in_thread(work):
        ended = client.wait(job.id, timeout=20, on_event=events.append)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert ended.error.hint == "Lower the rate."
    types = [event.type for event in events]
    assert types[0] == "job.submitted"
    assert types[-1] == "job.failed"
    assert "stage.progress" in types
    assert len({event.id for event in events}) == len(events)


def test_wait_goes_on_over_a_restart_of_the_server(client, live_api, hands):
    job = client.submit("math", profile="tiny", stages=["prepare"])
    claim = hands.claim(Stage.PREPARE)
    events: list[JobEvent] = []
    heard = threading.Event()

    def on_event(event: JobEvent) -> None:
        events.append(event)
        if event.type == "stage.running":
            heard.set()

    def restart() -> None:
        assert heard.wait(20)
        live_api.stop()
        hands.progress(claim, step=1, message="while the server is away")
        time.sleep(1)
        live_api.start()
        hands.commit(claim, {"kept": 3})

    with in_thread(restart):
        ended = client.wait(job.id, timeout=40, on_event=on_event)
    assert ended.status is JobStatus.SUCCEEDED
    assert [e.data["message"] for e in events if e.type == "stage.progress"] == [
        "while the server is away"
    ]
    assert len({event.id for event in events}) == len(events)


def test_a_broken_stream_resumes_behind_the_last_event(client, cable, hands):
    job = client.submit("math", profile="tiny", stages=["prepare"])
    claim = hands.claim(Stage.PREPARE)
    for step in range(200):
        hands.progress(claim, step=step, message="x" * 100)
    cable.cut_after.append(20_000)

    with Client(cable.url) as shaky:
        steps = []
        for event in shaky.events(job.id):
            if event.type == "stage.progress":
                steps.append(event.data["step"])
            if len(steps) == 200 and event.type == "stage.progress":
                hands.commit(claim, {"kept": 3})
    assert steps == list(range(200))
    assert event.type == "job.succeeded"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_separator_in_a_message_ends_no_line_of_the_stream(client, cable, hands, separator):
    """Python splits lines at these characters, server-sent events do not."""
    job = client.submit("math", profile="tiny", stages=["prepare"])
    claim = hands.claim(Stage.PREPARE)
    message = f"first{separator}{separator}data: second"
    hands.progress(claim, step=1, message=message)
    hands.commit(claim, {"kept": 3})
    with Client(cable.url) as watching:
        events = list(watching.events(job.id))
    assert [e.data["message"] for e in events if e.type == "stage.progress"] == [message]
    asked = [head.split()[1] for head in cable.heads if "/events" in head]
    assert not any("after=0" in path for path in asked)  # no page stood in for the stream


def test_wait_gives_up_in_time_and_the_job_goes_on(client):
    job = client.submit("math", profile="tiny")
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        client.wait(job.id, timeout=1)
    assert time.monotonic() - started < 5
    assert not client.job(job.id).is_terminal


def test_events_after_an_id(client):
    job = client.submit("math", profile="tiny")
    client.cancel(job.id)
    events = list(client.events(job.id))
    assert list(client.events(job.id, after=events[2].id)) == events[3:]
    assert list(client.events(job.id, after=events[-1].id)) == []


def test_cancel_of_a_waiting_job_ends_it_and_retry_goes_on(client):
    job = client.submit("math", profile="tiny")
    assert client.cancel(job.id).status is JobStatus.CANCELLED
    assert client.cancel(job.id).status is JobStatus.CANCELLED
    assert client.retry(job.id).status is JobStatus.QUEUED


@pytest.fixture
def built(client, hands):
    """A job that committed a file of 3 MB, and its content."""
    content = os.urandom(3_000_000)
    job = client.submit("math", profile="tiny", stages=["prepare"])
    files = {"training_data.jsonl": content, "gguf/x.gguf": b"", "notes/a b.txt": b"hello"}
    (artifact, *_) = hands.commit(hands.claim(Stage.PREPARE), {"kept": 3}, files)
    return job, artifact, content


def test_download_checks_and_places_the_file(client, built, tmp_path):
    job, artifact, content = built
    recipe = client.download(job.id, "inputs/adapter.yaml", tmp_path / "adapter.yaml")
    assert sha256_of(recipe) == job.spec.inputs["adapter.yaml"].sha256
    assert [a.name for a in client.artifacts(job.id) if a.stage is not None] == [
        "training_data.jsonl",
        "gguf/x.gguf",
        "notes/a b.txt",
    ]
    target = client.download(job.id, artifact.name, tmp_path / "new" / "data.jsonl")
    assert target.read_bytes() == content
    assert client.download(job.id, "prepare/notes/a b.txt", tmp_path) == tmp_path / "a b.txt"
    assert client.download(job.id, "gguf/x.gguf", tmp_path / "empty").read_bytes() == b""
    assert list((tmp_path / "new").iterdir()) == [target]
    with pytest.raises(NotFound, match=r"Artifacts: .*training_data\.jsonl"):
        client.download(job.id, "other", tmp_path)


def test_a_download_goes_on_where_it_broke(built, cable, tmp_path):
    job, artifact, content = built
    with Client(cable.url) as shaky:
        listed = shaky.artifacts(job.id)
        assert listed
        cable.heads.clear()
        cable.cut_after += [1_000_000, 1_000_000]
        target = shaky.download(job.id, artifact.name, tmp_path / "data.jsonl")
    assert target.read_bytes() == content
    starts = [int(start) for head in cable.heads for start in re.findall(r"bytes=(\d+)-", head)]
    assert starts == sorted(starts)
    assert starts[0] > 900_000
    assert starts[1] > starts[0]


def test_a_partial_file_of_something_else_is_thrown_away(client, built, tmp_path):
    job, artifact, content = built
    part = tmp_path / f".data.jsonl.{artifact.sha256[:12]}.part"
    part.write_bytes(b"\0" * 1000)
    assert client.download(job.id, artifact.name, tmp_path / "data.jsonl").read_bytes() == content
    assert not part.exists()


def test_a_file_that_changed_on_the_server_is_refused(client, built, tmp_path, adapters_dir):
    job, artifact, content = built
    (adapters_dir / artifact.path).write_bytes(content[::-1])
    with pytest.raises(ArtifactChanged, match=artifact.sha256):
        client.download(job.id, artifact.name, tmp_path / "data.jsonl")
    assert list(tmp_path.glob("*data.jsonl*")) == []


def test_a_right_file_is_not_fetched_again(client, built, tmp_path, live_api):
    job, artifact, _ = built
    target = client.download(job.id, artifact.name, tmp_path / "data.jsonl")
    before = target.stat().st_mtime_ns
    client.download(job.id, artifact.name, target)
    assert target.stat().st_mtime_ns == before


def test_keys(client, live_settings, live_api):
    assert live_settings.redis_url
    _, key = Keys.connect(live_settings.redis_url, namespace=live_settings.namespace).create("t")
    with pytest.raises(Unauthorized):
        list(client.jobs())
    with Client(live_api.url, key) as allowed:
        assert list(allowed.jobs()) == []
    with (
        Client(live_api.url, "loco_wrong") as wrong,
        pytest.raises(Unauthorized, match="not valid") as refused,
    ):
        list(wrong.jobs())
    assert str(refused.value.hint).startswith("Set LOCO_API_KEY")


def test_adapters_workers_ready_version(client):
    assert [adapter["name"] for adapter in client.adapters()] == ["analysis", "code", "math"]
    assert client.adapter("math")["profiles"] == ["default", "gold", "strong", "tiny"]
    assert client.workers() == []
    assert client.ready()["checks"]["redis"]["status"] == "ok"
    assert client.version()["name"] == "locollm"


def test_nothing_answers():
    started = time.monotonic()
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServerUnreachable) as unreachable:
        nobody.job("x")
    assert "loco up" in str(unreachable.value.hint)
    assert time.monotonic() - started < 5


def test_nothing_answers_where_only_the_client_is_installed(monkeypatch):
    monkeypatch.setattr(http, "is_client_alone", lambda: True)
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServerUnreachable) as unreachable:
        nobody.ready()
    assert "loco up" not in str(unreachable.value.hint)
    assert "LOCO_SERVER" in str(unreachable.value.hint)


def test_nothing_answers_at_the_address_of_another_machine():
    transport = http.Transport("http://box:8321", None, timeout=1)
    hint = transport.unreachable(httpx.ConnectError("[Errno 111] Connection refused")).hint
    assert hint == "Is the address right (LOCO_SERVER, --server)? Ask whoever runs the server."


def test_https_to_a_server_that_speaks_http_names_the_address_to_try():
    with serving(lambda _: (200, {}, b"{}")) as address:
        secure = address.replace("http://", "https://")
        with Client(secure) as client, pytest.raises(ServerUnreachable) as unreachable:
            client.ready()
    assert f"Try {address} as LOCO_SERVER" in str(unreachable.value.hint)


# Servers that are not the API of this version


Answer = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server that answers every request with what `answer` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:  # a test that fails must not leave a thread that keeps pytest from ending
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[None]:
    """Runs `work` beside the block and waits for it."""
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def test_the_key_follows_no_redirect():
    seen: list[str | None] = []

    def elsewhere(request):
        seen.append(request.headers.get("Authorization"))
        return 200, {}, b"{}"

    with serving(elsewhere) as other:

        def redirect(_):
            return 307, {"Location": f"{other}/jobs/x"}, b""

        with serving(redirect) as url, Client(url, "secret") as client:
            with pytest.raises(LocoError, match="redirects to"):
                client.job("x")
            with pytest.raises(LocoError, match="redirects to"):
                client.submit("math")
            with pytest.raises(LocoError, match="redirects to"):
                list(client.events("x"))
    assert seen == []


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (404, b"nginx"), (404, b"[]")])
def test_another_program_on_the_port_is_named_as_such(status, body):
    with (
        serving(lambda _: (status, {}, body)) as url,
        Client(url) as client,
        pytest.raises(LocoError, match="not from locollm") as foreign,
    ):
        client.job("x")
    assert "LOCO_SERVER" in str(foreign.value.hint)


def test_fields_of_a_newer_server_are_left_out(client, live_api):
    job = client.submit("math", profile="tiny")
    raw = job.model_dump(mode="json", by_alias=True)
    raw["galaxy"] = 1
    raw["stages"][0]["colour"] = "blue"
    raw["spec"]["train"]["lora"]["shape"] = "round"
    raw["spec"]["prepare"]["source"]["depth"] = 3
    with serving(lambda _: (200, {}, json.dumps(raw).encode())) as url, Client(url) as newer:
        assert newer.job(job.id) == job


def test_a_server_that_is_starting_gets_the_same_key_again(client):
    job = client.submit("math", profile="tiny")
    keys: list[str | None] = []

    def answer(request):
        keys.append(request.headers.get("Idempotency-Key"))
        if len(keys) < 3:
            return 503, {"Retry-After": "0"}, b"starting"
        return 202, {}, job.model_dump_json(by_alias=True).encode()

    with serving(answer) as url, Client(url) as early:
        assert early.submit("math", profile="tiny").id == job.id
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_events_come_by_pages_where_streams_are_swallowed(client, hands):
    job = client.submit("math", profile="tiny", stages=["prepare"])
    hands.commit(hands.claim(Stage.PREPARE), {"kept": 1})
    ended = client.job(job.id).model_dump_json(by_alias=True).encode()
    expected = list(client.events(job.id))

    def proxy(request):
        if not request.path.split("?")[0].endswith("/events"):
            return 200, {}, ended
        after = request.path.partition("after=")[2].partition("&")[0]
        data = [e.model_dump(mode="json") for e in expected if e.id > after][:3]
        body = json.dumps({"object": "list", "data": data, "has_more": len(data) == 3})
        return 200, {"Content-Type": "application/json"}, body.encode()

    with serving(proxy) as url, Client(url) as behind:
        assert list(behind.events(job.id)) == expected


def test_sha256_of_a_download_is_the_committed_one(built, client, tmp_path):
    job, artifact, _ = built
    path: Path = client.download(job.id, artifact.name, tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact.sha256
