"""Requests whose numbers, texts or structure are larger than anything has a use for.

`POST /plan` with `gradient_accumulation: 10**18`, forty times, stopped the API until kill -9. Every
number, text and list of a request has a bound, a plan has threads of its own, and what Python's JSON
lets through is an error of the request.
"""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_api import ApiServer
from pydantic import BaseModel

from loco.contracts.keys import KeyRequest
from loco.contracts.previews import PlanRequest
from loco.contracts.requests import JobRequest, ReplayRequest
from loco.contracts.specs import JobSpec
from loco.contracts.sweeps import SweepRequest
from loco.planning.ways import divisors_of
from loco.settings import Settings
from loco_api import plan
from loco_api.openai_api.forms import FineTuningRequest

pytestmark = pytest.mark.redis

TINY: dict[str, Any] = {"adapter": "math", "profile": "tiny"}
HUGE = 10**18
#: 14,414,400 rows a step have more divisors than any number up to the bound: 17 s of ways to weigh.
COSTLY: dict[str, Any] = {
    **TINY,
    "train": {"batch_size": 4095, "gradient_accumulation": 3520, "max_length": 1_048_576},
    "device": {"name": "NVIDIA H100", "memory_gb": 1, "compute_capability": 9.0},
}


@pytest.fixture
def http(live_api: ApiServer) -> Any:
    with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    "model",
    [
        *(JobRequest, PlanRequest, ReplayRequest, SweepRequest),
        *(JobSpec, KeyRequest, FineTuningRequest),
    ],
)
def test_every_field_of_a_request_has_a_bound(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    assert unbounded(schema, schema.get("$defs", {}), model.__name__) == set()


def unbounded(node: dict[str, Any], defs: dict[str, Any], path: str) -> set[str]:
    """Fields of a JSON schema without a largest value or length."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        rest = {k: v for k, v in defs.items() if k != name}
        return unbounded(defs[name], rest, path) if name in defs else set()
    if "const" in node or "enum" in node:
        return set()
    found: set[str] = set()
    bounds = {
        "integer": ("maximum", "exclusiveMaximum"),
        "number": ("maximum", "exclusiveMaximum"),
        "string": ("maxLength", "pattern", "format"),
        "array": ("maxItems",),
    }
    kind = node.get("type", "")
    if kind in bounds and not any(bound in node for bound in bounds[kind]):
        found.add(path)
    inner = [(path, n) for key in ("anyOf", "oneOf", "allOf") for n in node.get(key, ())]
    inner += [(f"{path}[]", node["items"])] if "items" in node else []
    inner += [(f"{path}.{name}", n) for name, n in node.get("properties", {}).items()]
    values = node.get("additionalProperties")
    if values not in (None, False):
        if "maxProperties" not in node:
            found.add(path)
        inner += [(f"{path}{{}}", values)] if isinstance(values, dict) else []
    for name, child in inner:
        found |= unbounded(child, defs, name)
    return found


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("train", "gradient_accumulation", HUGE),
        ("train", "batch_size", 10**400),
        ("train", "max_length", HUGE),
        ("train", "max_steps", HUGE),
        ("train", "epochs", 1e308),
        ("train", "micro_batch", -HUGE),
        ("prepare", "examples", HUGE),
        ("register", "num_ctx", HUGE),
        ("register", "num_ctx", -1),
        ("register", "num_predict", HUGE),
        ("eval", "limit", HUGE),
        ("eval", "instruction", "x" * 100_000),
        ("prepare", "source", {"kind": "jsonl", "path": "x" * 5000}),
        ("prepare", "source", {"kind": "jsonl", "path": "\0"}),
        ("prepare", "source", {"kind": "jsonl", "path": "loop"}),
        ("prepare", "source", {"kind": "jsonl", "path": "x" * 300}),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(
    http: httpx.Client, adapters_dir: Path, stage: str, field: str, value: object
) -> None:
    loop = adapters_dir / "math" / "loop"
    loop.symlink_to(loop)
    answer = http.post("/jobs", json={**TINY, stage: {field: value}})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["param"].startswith(f"{stage}.{field}")
    assert answer.json()["error"]["hint"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"adapter": "math", "from_job": "\\ud800"}',
        b'{"adapter": "\\ud800"}',
        b'{"adapter": "math", "metadata": {"a": "\\udfff"}}',
        b'{"adapter": "math", "seed": NaN}',
        b'{"adapter": "math", "seed": 1e999}',
        b'{"adapter": "math", "seed": ' + b"9" * 5000 + b"}",
        b'{"adapter": "math", "train": {"epochs": -Infinity}}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"adapter": ' * 10_000 + b"1" + b"}" * 10_000,
        b'{"adapter": "\xff\xfe"}',
        b"\xef\xbb\xbf{}",
        b"null",
        b"",
    ],
)
@pytest.mark.parametrize("route", ["/jobs", "/plan"])
def test_a_body_that_is_hardly_json_is_refused(http: httpx.Client, route: str, body: bytes) -> None:
    answer = http.post(route, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404, 422), answer.text
    assert answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/%ED%A0%80",
        "/jobs/" + "x" * 9000,
        "/jobs/%00",
        "/jobs?limit=" + "9" * 5000,
        "/jobs?after=%ED%A0%80",
        "/jobs?adapter=%FF",
        "/adapters/%2e%2e%2f%2e%2e",
        "/adapters/math?profile=%00",
        "/jobs/x/artifacts/%00",
        "/jobs/x/events?after=%00",
        "/tasks/%00",
        "/adapters/math/versions?after=" + "9" * 400,
    ],
)
def test_a_path_that_is_hardly_one_is_refused(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code in (200, 400, 404, 422), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["code"]


def test_a_spec_is_bounded_as_a_whole(http: httpx.Client) -> None:
    sets = {
        f"s{n}": {"source": {"kind": "jsonl", "path": f"{'x' * 190}/{'y' * 190}/{n}.jsonl"}}
        for n in range(45)
    }
    config = {f"k{n}": "v" * 900 for n in range(100)}
    answer = http.post("/jobs", json={**TINY, "eval": {"sets": sets}, "train": {}})
    assert answer.status_code == 422
    answer = http.post("/jobs", json={**TINY, "metadata": {f"k{n}": "v" * 512 for n in range(33)}})
    assert answer.json()["error"]["param"] == "metadata"
    assert config


def test_plans_do_not_stop_the_rest(
    http: httpx.Client, live_api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that take too long are given up by their threads too, which went on without a place."""
    monkeypatch.setattr(plan, "PLAN_SECONDS", 1)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=live_api.url, trust_env=False, timeout=60) as client:
            answers.append(client.post("/plan", json=COSTLY))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert http.get("/healthz").status_code == 200
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.05)
    assert slowest < 20
    assert [answer.status_code for answer in answers] == [503] * 40
    for answer in answers:
        assert answer.json()["error"]["code"] == "busy"
        assert answer.headers["Retry-After"]
    until_idle()
    monkeypatch.setattr(plan, "PLAN_SECONDS", 60)
    possible = {**TINY, "device": {**COSTLY["device"], "memory_gb": 80}}
    assert http.post("/plan", json=possible).status_code == 200


def test_a_plan_is_answered_in_time_whatever_its_thread_does(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that reads a large file looks at no deadline: whoever asked waited for its end."""
    monkeypatch.setattr(plan, "PLAN_SECONDS", 1)
    leave = threading.Event()
    preview = plan.preview

    def slow(*arguments: Any) -> Any:
        leave.wait(60)
        return preview(*arguments)

    monkeypatch.setattr(plan, "preview", slow)
    try:
        for _ in range(3):  # the third waits for a place: the threads of the others keep theirs
            assert http.post("/plan", json=TINY, timeout=30).status_code == 503
    finally:
        leave.set()
    monkeypatch.setattr(plan, "preview", preview)
    monkeypatch.setattr(plan, "PLAN_SECONDS", 60)
    possible = {**TINY, "device": {**COSTLY["device"], "memory_gb": 80}}
    assert http.post("/plan", json=possible).status_code == 200


def until_idle() -> None:
    """Waits until this process computes nothing, sooner than two costly plans end by themselves."""
    deadline = time.monotonic() + 15
    spent = time.process_time()
    while True:
        time.sleep(0.5)
        before, spent = spent, time.process_time()
        if spent - before < 0.25:
            return
        assert time.monotonic() < deadline


#: The API, with less time for a plan.
PLANS_OF_A_SECOND = """
from loco_api import __main__, plan
plan.PLAN_SECONDS = 1
raise SystemExit(__main__.main())
"""


def test_a_server_at_work_on_plans_ends_when_told_to(
    live_settings: Settings, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "LOCO_PORT": str(live_settings.port),
        "LOCO_REDIS_URL": str(live_settings.redis_url),
        "LOCO_ADAPTERS_DIR": str(live_settings.adapters_dir),
        "LOCO_DATA_DIR": str(tmp_path / "data"),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    served = subprocess.Popen([sys.executable, "-c", PLANS_OF_A_SECOND], env=environment)
    url = f"http://127.0.0.1:{live_settings.port}"
    try:
        until_up(url)
        body = json.dumps(COSTLY).encode()
        head = b"POST /plan HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with contextlib.ExitStack() as asked:
            for _ in range(40):
                one = socket.create_connection(("127.0.0.1", live_settings.port))
                asked.enter_context(one)
                one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            time.sleep(0.5)
            served.terminate()
            assert served.wait(60) == 0
        spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        assert spent < 25  # two costly plans alone take 34
    finally:
        served.kill()
        served.wait()


def until_up(url: str) -> None:
    """Waits for an API that starts."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_divisors_are_found_by_their_root() -> None:
    assert divisors_of(12) == (12, 6, 4, 3, 2, 1)
    assert divisors_of(1) == (1,)
    began = time.process_time()
    assert len(divisors_of(4096**2)) == 25
    assert len(divisors_of(10**12 + 39)) == 2
    assert time.process_time() - began < 10
