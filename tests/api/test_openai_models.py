"""/v1 by the real `openai` package: models, chats and errors, in front of a server that speaks like Ollama."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import openai
import pytest

from loco.contracts.keys import Scope
from loco.ledger.keys import Keys
from loco_api.openai_api import upstream

pytestmark = pytest.mark.redis

ASKED: Any = [{"role": "user", "content": "Name a colour."}]
BASE = "smollm2-135m-instruct"


class Speaker:
    """What the server holds, and what it was asked."""

    def __init__(self) -> None:
        self.models = {
            "smollm2:135m": "2026-01-02T03:04:05Z",
            "other:latest": "2026-01-02T03:04:05Z",
        }
        self.asked: list[tuple[str, dict[str, Any]]] = []
        #: Whether a stream breaks off in its middle.
        self.breaks = False
        #: Answers wait for it.
        self.holds = threading.Event()
        self.holds.set()


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def live_settings(live_settings, speaker, serve):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            listed = [{"model": n, "modified_at": t} for n, t in speaker.models.items()]
            self._say(200, {"models": listed})

        def do_DELETE(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            del speaker.models[body["model"]]
            self._say(200, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            speaker.asked.append((self.path, body))
            if body["model"] not in speaker.models:
                told = {"message": f"model '{body['model']}' not found", "type": "not_found_error"}
                self._say(404, {"error": {**told, "param": None, "code": None}})
            elif body.get("stream"):
                self._stream()
            else:
                speaker.holds.wait(30)
                message = {"role": "assistant", "content": "Blue."}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                head = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                }
                with suppress(OSError):  # the client is gone
                    self._say(200, {**head, "choices": [choice]})

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")
            self.end_headers()
            head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            for word in ("Bl", "ue."):
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                self._send(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())
                if speaker.breaks:
                    self.wfile.write(b"9\r\n")  # a piece that never comes
                    return
            self._send(b"data: [DONE]\n\n")
            self._send(b"")

        def _send(self, piece: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

        def _say(self, status: int, content: object) -> None:
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            return

    return live_settings.model_copy(update={"ollama_host": serve(Handler)})


@pytest.fixture
def client(live_api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{live_api.url}/v1", api_key="unused", max_retries=0, timeout=30
    ) as client:
        yield client


def test_models_are_what_ollama_has_and_the_bases_of_the_catalog(client, speaker):
    speaker.models["locollm-x:20260101-000000-abcdef"] = "2026-01-02T03:04:05Z"
    owners = {model.id: model.owned_by for model in client.models.list()}
    assert owners["smollm2:135m"] == owners["other:latest"] == "ollama"
    assert owners["locollm-x:20260101-000000-abcdef"] == "locollm"
    assert owners[BASE] == owners["qwen3-4b"] == "base"
    assert client.models.retrieve("other").id == "other"
    assert client.models.retrieve("other").created == 1767323045
    with pytest.raises(openai.NotFoundError, match=r"No model 'nobody'. GET /v1/models lists"):
        client.models.retrieve("nobody")


def test_only_candidates_are_deleted(client, speaker):
    for name in ("other", "other:latest", BASE, "locollm-math:latest"):
        with pytest.raises(
            openai.BadRequestError, match="is not a fine-tuned model of this server"
        ):
            client.models.delete(name)
    speaker.models["locollm-x:20260101-000000-abcdef"] = "2026-01-02T03:04:05Z"
    with pytest.raises(openai.NotFoundError, match="No model"):
        client.models.delete("locollm-x:20260101-000000-abcdef")
    assert len(speaker.models) == 3


def test_a_chat_is_ollamas_answer(client, speaker):
    said = client.chat.completions.create(model=BASE, messages=ASKED, max_completion_tokens=9)
    assert said.choices[0].message.content == "Blue."
    assert speaker.asked == [
        (
            "/v1/chat/completions",
            {"model": "smollm2:135m", "messages": ASKED, "max_tokens": 9},
        )
    ]
    with pytest.raises(openai.NotFoundError, match="model 'nobody' not found"):
        client.chat.completions.create(model="nobody", messages=ASKED)


def test_a_stream_comes_through_and_says_where_it_breaks(client, speaker):
    pieces = client.chat.completions.create(model="smollm2:135m", messages=ASKED, stream=True)
    assert [p.choices[0].delta.content for p in pieces] == ["Bl", "ue."]
    speaker.breaks = True
    pieces = client.chat.completions.create(model="smollm2:135m", messages=ASKED, stream=True)
    assert next(iter(pieces)).choices[0].delta.content == "Bl"
    with pytest.raises(openai.APIError, match="No Ollama answers"):
        list(pieces)


def test_as_many_answers_as_there_are_places_and_each_gives_its_own_back(
    client, speaker, monkeypatch, live_api
):
    monkeypatch.setattr(upstream, "AT_ONCE", 1)
    speaker.holds.clear()
    body = {"model": "smollm2:135m", "messages": ASKED}
    with pytest.raises(httpx.ReadTimeout):  # hangs up before an answer came
        httpx.post(f"{live_api.url}/v1/chat/completions", json=body, timeout=0.5, trust_env=False)
    speaker.holds.set()
    for _ in range(3):
        said = client.with_options(max_retries=5).chat.completions.create(**body)
        assert said.choices[0].message.content == "Blue."
        pieces = client.chat.completions.create(**body, stream=True)
        next(iter(pieces))
        pieces.close()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"[]", "model"),
        (b"{", None),
        (b'{"model": 3}', "model"),
        (b'{"model": "x", "a": NaN}', None),
    ],
)
def test_a_body_that_is_none_is_refused_in_openais_form(live_api, body, param):
    answer = httpx.post(f"{live_api.url}/v1/chat/completions", content=body, trust_env=False)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.fixture
def keys(redis_url: str, namespace: str) -> Iterator[Keys]:
    keys = Keys.connect(redis_url, namespace=namespace)
    yield keys
    keys.close()


def test_every_error_below_v1_is_of_openais_form(live_api, keys):
    with httpx.Client(base_url=live_api.url, trust_env=False) as http:
        errors = [
            http.get("/v1/nothing"),
            http.put("/v1/models"),
            http.get("/v1/models?color=blue"),
            http.get("/v1/fine_tuning/jobs/nope"),
            http.get("/v1/models", headers={"Host": "evil.example"}),
            http.post("/v1/chat/completions", content=b"x" * (2 << 20)),
        ]
        _, key = keys.create("reader", scope=Scope.READ)
        errors += [http.get("/v1/models")]
        bearer = {"Authorization": f"Bearer {key}"}
        errors += [http.post("/v1/chat/completions", headers=bearer, json={"model": "x"})]
    statuses = [404, 405, 400, 404, 403, 413, 401, 403]
    assert [answer.status_code for answer in errors] == statuses
    for answer in errors:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, answer.text
    assert errors[6].json()["error"]["code"] == "invalid_api_key"


def test_a_key_is_a_bearer_and_chats_are_no_changes(client, keys, live_api):
    _, key = keys.create("anna", scope=Scope.SUBMIT, owner="anna")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    anna = client.with_options(api_key=key)
    assert anna.chat.completions.create(model=BASE, messages=ASKED)
    _, root = keys.create("root", scope=Scope.ADMIN)
    audit = httpx.get(
        f"{live_api.url}/audit", headers={"Authorization": f"Bearer {root}"}, trust_env=False
    )
    assert audit.json()["data"] == []


def test_without_ollama_the_error_says_so(live_api, speaker):
    live_api.stop()
    live_api.settings = live_api.settings.model_copy(update={"ollama_host": "http://127.0.0.1:9"})
    live_api.start()
    with openai.OpenAI(base_url=f"{live_api.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="No Ollama answers"):
            client.chat.completions.create(model=BASE, messages=ASKED)
        with pytest.raises(openai.InternalServerError, match="No Ollama answers"):
            client.models.list()
