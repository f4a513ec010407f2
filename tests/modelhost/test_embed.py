"""/api/embed, /v1/embeddings and /v1/models as Ollama has them; against a real one too, with LOCO_TEST_OLLAMA."""

import base64
import math
import struct

import pytest


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_texts_become_vectors_of_length_one_that_depend_on_nothing_else(server, model):
    body = {"model": model, "input": ["The cat sleeps.", "A cat is asleep.", "Sell 40 shares now!"]}
    answer = server.post("/api/embed", body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert set(told) >= {"model", "embeddings", "total_duration", "prompt_eval_count"}
    vectors = told["embeddings"]
    assert [len(v) for v in vectors] == [576] * 3
    assert all(math.isclose(cosine(v, v), 1, rel_tol=1e-4) for v in vectors)
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2])
    said = server.chat(model, "Name a colour.").json()["message"]
    one = server.post("/api/embed", {"model": model, "input": "The cat sleeps."}).json()
    assert cosine(one["embeddings"][0], vectors[0]) > 0.99999
    assert server.chat(model, "Name a colour.").json()["message"] == said


def test_a_long_text_is_cut_or_refused(server, model):
    long = "word " * 2000
    whole = server.post("/api/embed", {"model": model, "input": long})
    assert whole.status_code == 200, whole.text
    assert whole.json()["prompt_eval_count"] == 512, "its context"
    refused = server.post("/api/embed", {"model": model, "input": long, "truncate": False})
    assert refused.status_code == 400
    assert "exceeds the context length" in refused.json()["error"]


def test_nothing_makes_no_vectors_and_other_types_are_refused(server, model):
    assert server.post("/api/embed", {"model": model}).json()["embeddings"] == []
    refused = server.post("/api/embed", {"model": model, "input": 3})
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid input type")
    assert server.post("/api/embed", {"model": "nobody", "input": "x"}).status_code == 404


def test_openai_clients_get_the_same_vectors_as_numbers_or_packed(server, model):
    body = {"model": model, "input": "The cat sleeps."}
    [own] = server.post("/api/embed", body).json()["embeddings"]
    told = server.post("/v1/embeddings", body).json()
    assert (told["object"], told["model"]) == ("list", model)
    [entry] = told["data"]
    assert (entry["object"], entry["index"]) == ("embedding", 0)
    assert cosine(entry["embedding"], own) > 0.99999
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] > 0
    packed = server.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert cosine(list(struct.unpack(f"<{len(raw) // 4}f", raw)), own) > 0.99999


@pytest.mark.parametrize("nothing", ["", []])
def test_openai_clients_read_what_is_wrong(server, model, nothing):
    refused = server.post("/v1/embeddings", {"model": model, "input": nothing})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "invalid input"


def test_openai_clients_see_the_models(server, model):
    listed = server.http.get("/v1/models").json()
    assert listed["object"] == "list"
    [entry] = [m for m in listed["data"] if m["id"] == model]
    assert entry == {**entry, "object": "model", "owned_by": "library"}
    assert entry["created"] > 1_700_000_000
    assert server.http.get(f"/v1/models/{model}").json() == entry
    missing = server.http.get("/v1/models/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"] == "model 'nobody' not found"
