"""Requests that make no sense or mean harm: each names its fault and changes nothing.

One server serves the whole file.
"""

import json
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from loco.contracts.artifacts import describe
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Ledger
from loco.settings import Settings
from loco_api.__main__ import build, server

pytestmark = pytest.mark.redis

TINY = {"adapter": "math", "profile": "tiny"}


@pytest.fixture(scope="module")
def settings(redis_url, tmp_path_factory) -> Settings:
    adapters = tmp_path_factory.mktemp("adapters")
    source = Path(__file__).parents[2] / "adapters"
    shutil.copy(source / "base_models.yaml", adapters)
    (adapters / "math").mkdir()
    for name in ("adapter.yaml", "eval_dataset.jsonl"):
        shutil.copy(source / "math" / name, adapters / "math")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return Settings(
        port=port,
        adapters_dir=adapters,
        data_dir=adapters.parent / "data",
        redis_url=redis_url,
        namespace=f"refusals-{uuid.uuid4().hex[:8]}",
    )


@pytest.fixture(scope="module")
def http(settings) -> Iterator[httpx.Client]:
    running = server(build(settings))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", trust_env=False) as client:
        yield client
    running.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def job_id(http, settings) -> str:
    """A job whose prepare stage has committed a file; the only job there is."""
    job_id = http.post("/jobs", json=TINY).json()["id"]
    ledger = Ledger.connect(settings.redis_url, namespace=settings.namespace)
    claim = ledger.claim(Queue.CPU, worker_id="hands", nonce="n")
    path = settings.adapters_dir / "math" / "runs" / job_id / "prepare" / "a1" / "empty.jsonl"
    path.parent.mkdir(parents=True)
    path.touch()
    artifact = describe(settings.adapters_dir, path, name="empty.jsonl", stage=Stage.PREPARE)
    ledger.commit(claim.task_id, claim.token, result={}, artifacts=(artifact,), fingerprint="f")
    ledger.close()
    assert http.get(f"/jobs/{job_id}/artifacts/prepare/empty.jsonl").status_code == 200
    return job_id


def jobs(http: httpx.Client) -> list[str]:
    return [job["id"] for job in http.get("/jobs").json()["data"]]


def error(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"code", "message", "param", "hint"}
    return response.json()["error"]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"adapter": "maths"}, 404, "unknown_adapter", "adapter"),
        ({"adapter": "../math"}, 404, "unknown_adapter", "adapter"),
        ({"adapter": "math/../math"}, 404, "unknown_adapter", "adapter"),
        ({"adapter": "/etc"}, 404, "unknown_adapter", "adapter"),
        ({"adapter": "math\x00"}, 404, "unknown_adapter", "adapter"),
        ({"adapter": "m" * 300}, 422, "invalid_request", "adapter"),
        ({"adapter": ""}, 404, "unknown_adapter", "adapter"),
        ({"adapter": None}, 422, "invalid_request", "adapter"),
        ({"profile": "huge"}, 422, "unknown_profile", "profile"),
        ({"base_model": "gpt-9"}, 422, "unknown_base_model", "base_model"),
        ({"stages": ["prepare", "deploy"]}, 422, "invalid_request", "stages.1"),
        ({"stages": []}, 422, "invalid_request", "stages"),
        ({"stages": ["prepare", "export"]}, 422, "stage_gap", "stages"),
        ({"stages": ["export", "register"]}, 422, "stage_gap", "stages"),
        ({"stages": ["train"], "from_job": "none"}, 404, "not_found", "from_job"),
        ({"epochs": 3}, 422, "invalid_request", "epochs"),
        ({"train": {"epoch": 3}}, 422, "invalid_request", "train.epoch"),
        ({"train": {"epochs": -1}}, 422, "invalid_request", "train.epochs"),
        ({"train": {"lora": {"r": 0}}}, 422, "invalid_request", "train.lora.r"),
        ({"train": {"base_model": "x"}}, 422, "invalid_request", "train.base_model"),
        ({"train": []}, 422, "invalid_request", "train"),
        ({"seed": -1}, 422, "invalid_request", "seed"),
        ({"seed": 2**40}, 422, "invalid_request", "seed"),
        ({"priority": 1000}, 422, "invalid_request", "priority"),
        ({"metadata": {"k": "v" * 600}}, 422, "invalid_request", "metadata.k"),
    ],
)
def test_bad_requests_name_the_field_and_change_nothing(http, job_id, change, status, code, param):
    body = error(http.post("/jobs", json={**TINY, **change}), status)
    assert (body["code"], body["param"]) == (code, param)
    assert body["message"]
    assert jobs(http) == [job_id]


def test_the_field_that_was_meant_is_named(http):
    body = error(http.post("/jobs", json={**TINY, "learning_rate": 1e-4}), 422)
    assert "Did you mean train.learning_rate?" in body["hint"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"adapter": "math", "train": ' + b'{"a":' * 300 + b"1" + b"}" * 301,
        b'{"adapter": "math", "train": {"\\ud800": 1}}',
        b'{"adapter": "math", "train": {"weight_decay": Infinity}}',
        b'{"adapter": "math", "metadata": {"k": "\\ud800"}}',
        b'{"adapter": "math", "seed": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_request_is_told_so(http, job_id, content):
    answer = http.post("/jobs", content=content, headers={"Content-Type": "application/json"})
    assert error(answer, 422)["code"] == "invalid_request"
    assert jobs(http) == [job_id]


@pytest.mark.parametrize(
    "path",
    [
        "../../../adapter.yaml",
        "..%2f..%2f..%2fadapter.yaml",
        "%2e%2e/%2e%2e/adapter.yaml",
        "prepare/../prepare/empty.jsonl",
        "prepare/%2e%2e/%2e%2e/base_models.yaml",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "prepare/empty.jsonl%00",
        "prepare/empty.jsonl%00.txt",
        "prepare//empty.jsonl",
        "prepare%5c..%5cempty.jsonl",
        "prepare/a1/empty.jsonl",
        "file:///etc/passwd",
        "%ff%fe",
        "",
        "." * 5000,
    ],
)
def test_hostile_artifact_paths_are_not_found(http, job_id, path):
    """Sent raw: a client library would tidy the path up."""
    connection = HTTPConnection("127.0.0.1", http.base_url.port, timeout=10)
    connection.request("GET", f"/jobs/{job_id}/artifacts/{path}")
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    assert answer.status == 404
    assert body["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "name", "hint"),
    [
        ("/jobs?metadata=x", "metadata", "This route takes adapter, after, limit, status."),
        ("/jobs?stats=failed", "stats", "Did you mean status?"),
        ("/workers?verbose=1", "verbose", "This route takes no query parameters."),
        ("/adapters/math/versions?befor=3", "befor", "This route takes after, limit, model."),
    ],
)
def test_a_query_parameter_that_is_none_is_refused(http, path, name, hint):
    """`/jobs?metadata=x` listed all jobs, as if the filter had been applied."""
    answer = http.get(path)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["hint"]) == ("invalid_request", name, hint)
