"""/v1/chat/completions as Ollama has it; against a real one too, with LOCO_TEST_OLLAMA."""

import json

import pytest

PATH = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "Name a colour."}]


def greedy(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 8, **more}


def chunks(server, body: dict[str, object]) -> list[dict]:
    with server.http.stream("POST", PATH, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_it_answers_what_api_chat_answers(server, model):
    answer = server.post(PATH, greedy(model, seed=1))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    own = server.chat(model, "Name a colour.").json()
    assert said["object"] == "chat.completion"
    assert said["model"] == model
    assert said["system_fingerprint"] == "fp_ollama"
    assert said["id"].startswith("chatcmpl-")
    [choice] = said["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == own["message"]["content"]
    assert choice["finish_reason"] == own["done_reason"]
    assert said["usage"]["prompt_tokens"] == own["prompt_eval_count"]
    assert said["usage"]["completion_tokens"] == own["eval_count"]
    assert said["usage"]["total_tokens"] == own["prompt_eval_count"] + own["eval_count"]


def test_a_stream_is_the_same_text(server, model):
    whole = server.post(PATH, greedy(model)).json()
    found = chunks(server, greedy(model, stream_options={"include_usage": True}))
    assert {c["object"] for c in found} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"]) for c in found}) == 1
    *content, end, usage = found
    deltas = [c["choices"][0]["delta"] for c in content]
    assert [d.get("role") for d in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    text = "".join(d["content"] for d in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert end["choices"][0]["delta"] == {}
    assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all("usage" not in c for c in chunks(server, greedy(model)))


def test_stop_and_parts(server, model):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Name a colour."}]}]
    assert (
        server.post(PATH, greedy(model, messages=parts)).json()["choices"]
        == server.post(PATH, greedy(model)).json()["choices"]
    )
    text = server.post(PATH, greedy(model)).json()["choices"][0]["message"]["content"]
    cut = server.post(PATH, greedy(model, stop=text[3:6])).json()["choices"][0]
    assert cut["message"]["content"] == text[: text.index(text[3:6])]
    assert cut["finish_reason"] == "stop"


def test_the_prompt_can_be_seen(server, model):
    answer = server.post(PATH, greedy(model, _debug_render_only=True)).json()
    body = {"model": model, "messages": ASKED, "stream": False, "_debug_render_only": True}
    own = server.post("/api/chat", body).json()
    assert answer["_debug_info"]["rendered_template"] == own["_debug_info"]["rendered_template"]


@pytest.mark.parametrize(
    ("change", "status", "kind", "words"),
    [
        ({"messages": []}, 400, "invalid_request_error", "[] is too short - 'messages'"),
        ({"messages": [{"role": "user"}]}, 400, "invalid_request_error", "invalid message content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "no"}]}]},
            400,
            "invalid_request_error",
            "invalid message format",
        ),
        ({"reasoning_effort": "much"}, 400, "invalid_request_error", "invalid reasoning value"),
        ({"reasoning_effort": "high"}, 400, "invalid_request_error", "does not support thinking"),
        ({"model": "no-such-model"}, 404, "not_found_error", "not found"),
    ],
)
def test_errors_have_openais_form(server, model, change, status, kind, words):
    answer = server.post(PATH, {**greedy(model), **change})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert (error["type"], error["param"], error["code"]) == (kind, None, None)


def test_what_is_left_out_is_openais_default(own_host):
    """Not the model's own temperature of 0: two seeds say something else."""
    body = {"model": "smollm2:135m", "messages": ASKED, "max_tokens": 24}
    said = {
        own_host.post(PATH, {**body, "seed": seed}).text.partition('"content"')[2]
        for seed in range(4)
    }
    assert len(said) > 1
