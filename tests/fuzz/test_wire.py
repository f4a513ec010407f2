"""Any bytes of a stage program, and any answer of a server: an event or our error, nothing else."""

import json

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loco.client.events import read_sse
from loco.client.http import Transport
from loco.contracts.errors import LocoError, from_payload
from loco.contracts.jobs import JobEvent
from loco.contracts.program_events import LogEvent
from loco.running.child import _parsed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
PROGRESS = st.dictionaries(
    st.sampled_from(["percent", "message", "step", "total_steps", "loss", "tried", "epoch"]), JSON
)
EVENT = st.fixed_dictionaries(
    {"type": st.sampled_from(["progress", "log", "checkpoint", "error"]) | JSON},
    optional={"progress": PROGRESS | JSON, "message": JSON, "path": JSON, "step": JSON, "error": JSON,
              "user_fault": JSON, "retryable": JSON},
)  # fmt: skip


@given(line=st.binary(max_size=200) | (EVENT | JSON).map(lambda e: json.dumps(e).encode()))
@example(line=b'{"type": "log", "message": "\\ud800"}')
@example(line=b'{"type": "log", "message": ' + b"[" * 100_000)
@example(line=b'{"type": "progress", "progress": {"step": ' + b"9" * 5000 + b"}}")
@example(line=b'{"type": "progress", "progress": {"loss": NaN}}')
@example(line=b"\xff\xfe\x00")
def test_any_line_of_a_program_is_an_event(line):
    event = _parsed(line)
    event.model_dump_json()
    if isinstance(event, LogEvent):
        f"{event.message}\n".encode()


@given(payload=JSON | st.fixed_dictionaries({"error": st.fixed_dictionaries(
    {}, optional={"code": JSON, "message": JSON, "param": JSON, "hint": JSON})}))  # fmt: skip
def test_any_payload_is_an_error_of_ours(payload):
    error = from_payload(payload, fallback="HTTP 500")
    assert isinstance(error, LocoError)
    json.dumps(error.body.model_dump())


def answering(response: httpx.Response) -> Transport:
    """A client of a server that answers everything with this."""
    transport = Transport("http://127.0.0.1:9", None, timeout=5)
    transport._http = httpx.Client(
        base_url=transport.server, transport=httpx.MockTransport(lambda _: response)
    )
    return transport


#: What a server may call its pauses; `²` is a digit to Python, and none that `float` takes.
HEADERS = st.sampled_from(["²", "9" * 400, "-1", "1e9", "nan", "soon", "", "0"])


@given(
    status=st.integers(200, 599),
    body=st.binary(max_size=80) | JSON.map(lambda v: json.dumps(v).encode()),
    retry_after=HEADERS,
)
def test_any_answer_is_a_value_or_our_error(status, body, retry_after):
    response = httpx.Response(status, content=body, headers={"Retry-After": retry_after.encode()})
    transport = answering(response)
    try:
        transport.request("POST", "/jobs", body={}, repeatable=False)
    except LocoError as error:
        json.dumps(error.body.model_dump())
    finally:
        transport.close()


@pytest.mark.parametrize("value", ["²", "9" * 400, "-1", "1e9", "nan", "soon", ""])
def test_any_pause_a_server_asks_for_is_bounded(value):
    from loco.client.http import LONGEST_RETRY_AFTER, _retry_after  # noqa: PLC0415

    response = httpx.Response(503, headers={"Retry-After": value.encode()})
    assert 0 <= _retry_after(response) <= LONGEST_RETRY_AFTER


FIELD = st.sampled_from([b"data: ", b"data:", b"event: ", b"id: ", b": ", b"retry: ", b""])
SSE = st.lists(
    st.tuples(FIELD, st.binary(max_size=30) | JSON.map(lambda v: json.dumps(v).encode())),
    max_size=6,
)


@given(lines=SSE, end=st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]))
@example(lines=[(b"data: ", b"{")], end=b"\n\n")
@example(lines=[(b"data: ", b'{"id": ' + b"9" * 5000 + b"}")], end=b"\n\n")
@example(lines=[(b"data: ", b"[" * 100_000)], end=b"\n\n")
def test_any_stream_is_events_or_our_error(lines, end):
    content = end.join(field + value for field, value in lines) + end + end
    response = httpx.Response(
        200,
        content=content,
        headers={"Content-Type": "text/event-stream"},
        request=httpx.Request("GET", "http://127.0.0.1:9/jobs/1/events"),
    )
    try:
        assert all(isinstance(event, JobEvent) for event in read_sse(response))
    except LocoError as error:
        assert error.retryable
