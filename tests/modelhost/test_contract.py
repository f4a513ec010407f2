"""What clients of Ollama rely on: status, error text and keys; never the generated text.

Runs against the stand-in, and against a real Ollama when LOCO_TEST_OLLAMA names one:

    LOCO_TEST_OLLAMA=http://127.0.0.1:11434 .venv-train/bin/python -m pytest tests/modelhost/test_contract.py
"""

import hashlib
import json
import re
import time
import uuid

import httpx
import pytest

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
MISSING = "sha256:" + "0" * 64


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    return body["error"]


def wait_gone(server, model: str) -> None:
    """Returns once a model is out of memory."""
    deadline = time.monotonic() + 10
    while model in {m["name"] for m in server.http.get("/api/ps").json()["models"]}:
        assert time.monotonic() < deadline, "it is still in memory"
        time.sleep(0.05)


@pytest.fixture
def name() -> str:
    """A model name nobody uses."""
    return f"locollm-contract-{uuid.uuid4().hex[:8]}:v1"


class TestServer:
    def test_root(self, server):
        assert server.http.get("/").text == "Ollama is running"
        assert server.http.head("/").status_code == 200

    def test_version(self, server):
        assert re.match(r"\d+\.\d+", server.http.get("/api/version").json()["version"])

    def test_unknown_paths_and_methods(self, server):
        assert server.http.get("/api/nothing").status_code == 404
        assert server.http.get("/api/chat").status_code == 405

    def test_loopback_refuses_foreign_hosts(self, server):
        foreign = server.http.get("/api/tags", headers={"Host": "attacker.example"})
        assert foreign.status_code == 403
        assert foreign.content == b""
        assert server.http.get("/", headers={"Host": "localhost"}).status_code == 200

    @pytest.mark.parametrize("path", ["show", "create", "copy", "chat", "generate", "pull"])
    def test_body_is_needed(self, server, path):
        assert error_of(server.http.post(f"/api/{path}"), 400) == "missing request body"

    def test_wrong_type(self, server, model):
        answer = server.post("/api/chat", {"model": model, "messages": "hello"})
        assert "cannot unmarshal string into Go struct field" in error_of(answer, 400)


class TestBlobs:
    def test_unknown(self, server):
        assert server.http.head(f"/api/blobs/{MISSING}").status_code == 404

    @pytest.mark.parametrize("digest", ["md5:0", "sha256:xyz", "..%2f..%2fetc%2fpasswd"])
    def test_not_a_digest(self, server, digest):
        assert server.http.head(f"/api/blobs/{digest}").status_code in (400, 404)
        assert server.http.post(f"/api/blobs/{digest}", content=b"x").status_code in (400, 404)

    def test_upload(self, server):
        content = uuid.uuid4().bytes
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert server.http.post(f"/api/blobs/{digest}", content=content).status_code == 201
        assert server.http.head(f"/api/blobs/{digest}").status_code == 200
        assert server.http.post(f"/api/blobs/{digest}", content=content).status_code == 200

    def test_mismatch(self, server):
        got = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
        answer = server.http.post(f"/api/blobs/{MISSING}", content=b"other")
        assert error_of(answer, 400) == f'digest mismatch, expected "{MISSING}", got "{got}"'
        assert server.http.head(f"/api/blobs/{MISSING}").status_code == 404


class TestCreate:
    def test_streams_progress(self, server, name, weights):
        body = {"model": name, "files": {"model.gguf": server.upload(weights)}}
        statuses = [line["status"] for line in server.lines("/api/create", body)]
        assert statuses[0] == "parsing GGUF"
        assert "using autodetected template chatml" in statuses
        assert statuses[-2:] == ["writing manifest", "success"]
        assert name in server.names()
        server.http.request("DELETE", "/api/delete", json={"model": name})

    def test_stored_digest_is_not_the_uploaded_one(self, server, model, weights):
        modelfile = server.post("/api/show", {"model": model}).json()["modelfile"]
        stored = re.search(r"^FROM .*sha256-([0-9a-f]{64})$", modelfile, re.MULTILINE)
        assert stored
        assert stored[1] != hashlib.sha256(weights).hexdigest()

    def test_from_a_stored_model(self, server, model, name):
        body = {"model": name, "from": model, "system": "Be brief.", "stream": False}
        assert server.post("/api/create", body).json() == {"status": "success"}
        shown = server.post("/api/show", {"model": name}).json()
        assert shown["system"] == "Be brief."
        assert shown["details"]["parent_model"] == model
        assert re.search(r"num_ctx\s+512", shown["parameters"])
        assert server.digest(name) != server.digest(model)
        server.http.request("DELETE", "/api/delete", json={"model": name})

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({}, "neither 'from' or 'files' was specified"),
            ({"modelfile": "FROM x"}, "neither 'from' or 'files' was specified"),
            ({"files": {}}, "unknown type"),
            ({"files": {"/model.gguf": MISSING}}, "file path must be relative"),
            ({"files": {"../model.gguf": MISSING}}, "file path must be relative"),
            ({"files": {"model.gguf": ""}}, "invalid digest format"),
            ({"files": {"model.bin": MISSING}}, "unknown type"),
            ({"model": "a b"}, "invalid model name"),
        ],
    )
    def test_refusals(self, server, name, body, message):
        answer = server.post("/api/create", {"model": name, "stream": False, **body})
        assert error_of(answer, 400) == message
        assert name not in server.names()

    def test_missing_blob(self, server, name):
        body = {"model": name, "files": {"model.gguf": MISSING}}
        whole = server.post("/api/create", {**body, "stream": False})
        assert "no such file or directory" in error_of(whole, 500)
        *_, last = server.lines("/api/create", body)
        assert "no such file or directory" in last["error"]

    def test_not_a_gguf(self, server, name):
        body = {"model": name, "files": {"model.gguf": server.upload(b"no model " * 100)}}
        message = "supplied file was not in GGUF format"
        assert error_of(server.post("/api/create", {**body, "stream": False}), 400) == message
        *_, last = server.lines("/api/create", body)
        assert last == {"error": message}

    def test_quantize_refuses_what_is_quantized(self, server, name, weights):
        files = {"model.gguf": server.upload(weights)}
        body = {"model": name, "files": files, "quantize": "Q8_0", "stream": False}
        message = "quantization is only supported for F16, BF16 and F32 models"
        assert error_of(server.post("/api/create", body), 500) == message

    def test_unknown_base_is_pulled(self, server, name):
        missing = f"no-such-model-{uuid.uuid4().hex}"
        body = {"model": name, "from": missing, "stream": False}
        message = error_of(server.post("/api/create", body), 500)
        assert message.startswith("pull model manifest: ")

    def test_pull_fails_in_band(self, server):
        body = {"model": f"no-such-model-{uuid.uuid4().hex}"}
        first, *_, last = server.lines("/api/pull", body)
        assert first == {"status": "pulling manifest"}
        assert last["error"].startswith("pull model manifest: ")


class TestModels:
    def test_listing(self, server, model):
        found = server.http.get("/api/tags").json()["models"]
        entry = next(m for m in found if m["name"] == model)
        assert entry["model"] == model
        assert re.fullmatch(r"[0-9a-f]{64}", entry["digest"])
        assert entry["size"] > 90_000_000
        assert entry["modified_at"]
        details = entry["details"]
        assert details["format"] == "gguf"
        assert (details["family"], details["families"]) == ("llama", ["llama"])
        assert (details["parameter_size"], details["quantization_level"]) == ("134.52M", "Q4_1")

    def test_show(self, server, model):
        shown = server.post("/api/show", {"model": model}).json()
        assert shown["system"] == SYSTEM
        assert "completion" in shown["capabilities"]
        assert "thinking" not in shown["capabilities"]
        assert "<|im_start|>{{ .Role }}" in shown["template"]
        assert re.search(r'^stop\s+"<\|im_end\|>"$', shown["parameters"], re.MULTILINE)
        assert re.search(r"^num_ctx\s+512$", shown["parameters"], re.MULTILINE)
        info = shown["model_info"]
        assert info["general.architecture"] == "llama"
        assert info["general.parameter_count"] == 134515008
        assert info["llama.context_length"] == 8192
        assert "tokenizer.chat_template" not in info
        assert shown["modelfile"].startswith('# Modelfile generated by "ollama show"')
        assert {"name": "token_embd.weight", "type": "Q8_0"}.items() <= shown["tensors"][0].items()

    def test_show_verbose_has_the_vocabulary(self, server, model):
        brief, full = (
            server.post("/api/show", {"model": model, "verbose": verbose}).json()["model_info"]
            for verbose in (False, True)
        )
        assert not brief["tokenizer.ggml.tokens"]
        tokens = full["tokenizer.ggml.tokens"]
        assert len(tokens) == len(full["tokenizer.ggml.token_type"]) == 49152
        assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        assert tokens.index("Ġthe") < tokens.index("Ġquestion")
        assert brief.keys() == full.keys()

    def test_show_refusals(self, server, name):
        assert error_of(server.post("/api/show", {}), 400) == "model is required"
        assert (
            error_of(server.post("/api/show", {"model": name}), 404) == f"model '{name}' not found"
        )

    def test_copy_and_delete(self, server, model, name):
        other = name.replace(":v1", ":latest")
        assert server.post("/api/copy", {"source": model, "destination": other}).status_code == 200
        assert server.digest(other) == server.digest(model)
        bare = {"model": other.removesuffix(":latest")}
        assert server.http.request("DELETE", "/api/delete", json=bare).status_code == 200
        assert other not in server.names()
        assert server.chat(model, "Hi").status_code == 200  # the shared blobs are still here

    def test_copy_overwrites(self, server, model, name, weights):
        server.create(name, weights, system="Other.")
        before = server.digest(name)
        server.post("/api/copy", {"source": model, "destination": name})
        assert server.digest(name) == server.digest(model) != before
        server.http.request("DELETE", "/api/delete", json={"model": name})

    def test_copy_and_delete_of_nothing(self, server, name):
        answer = server.post("/api/copy", {"source": name, "destination": "locollm-x"})
        assert error_of(answer, 404) == f'model "{name}" not found'
        gone = server.http.request("DELETE", "/api/delete", json={"model": name})
        assert error_of(gone, 404) == f"model '{name}' not found"

    def test_names_ignore_case(self, server, model):
        assert server.post("/api/show", {"model": model.upper()}).status_code == 200


class TestChat:
    def test_whole_answer(self, server, model):
        answer = server.chat(model, "What is 2 + 2?").json()
        assert answer["model"] == model
        assert answer["created_at"]
        assert answer["message"]["role"] == "assistant"
        assert answer["message"]["content"]
        assert "thinking" not in answer["message"]
        assert answer["done"] is True
        assert answer["done_reason"] in ("stop", "length")
        assert answer["eval_count"] <= 8
        durations = ("total_duration", "prompt_eval_duration", "eval_duration")
        assert all(answer[key] > 10_000 for key in durations)  # nanoseconds

    def test_stream(self, server, model):
        body = {"model": model, "messages": [{"role": "user", "content": "Count to ten."}]}
        *parts, last = server.lines("/api/chat", {**body, "options": {"num_predict": 6}})
        assert len(parts) > 1
        assert all(part["done"] is False and part["message"]["content"] for part in parts)
        assert last["done"] is True
        assert last["done_reason"] == "length"
        assert last["eval_count"] == 6

    def test_prompt(self, server, model):
        answer = server.chat(model, "Hello", _debug_render_only=True).json()
        assert answer["_debug_info"]["rendered_template"] == (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_system_of_the_request_replaces_the_stored_one(self, server, model):
        messages = [{"role": "system", "content": "A"}, {"role": "user", "content": "B"}]
        body = {"model": model, "messages": messages, "_debug_render_only": True}
        rendered = server.post("/api/chat", body).json()["_debug_info"]["rendered_template"]
        assert rendered.startswith("<|im_start|>system\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>")

    def test_chatml_drops_the_default_system_prompt(self, server, name, weights):
        server.create(name, weights)
        answer = server.chat(name, "Hi", _debug_render_only=True).json()
        assert answer["_debug_info"]["rendered_template"] == (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )
        server.http.request("DELETE", "/api/delete", json={"model": name})

    def test_stop_strings(self, server, model):
        options = {"temperature": 0, "num_predict": 60, "stop": ["a", "e", "i", "o", "1", "2"]}
        answer = server.chat(model, "Write a long story.", options=options).json()
        assert answer["done_reason"] == "stop"
        assert not set("aeio12") & set(answer["message"]["content"])

    def test_format(self, server, model):
        options = {"temperature": 0, "num_predict": 30}
        schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
        answer = server.chat(model, "Is 2 even?", format=schema, options=options).json()
        assert isinstance(json.loads(answer["message"]["content"])["n"], bool)

    def test_thinking_is_refused_only_when_asked_for(self, server, model):
        message = f'"{model}" does not support thinking'
        assert error_of(server.chat(model, "Hi", think=True), 400) == message
        assert server.chat(model, "Hi", think=False).status_code == 200

    def test_tools_are_refused(self, server, model):
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        assert error_of(server.chat(model, "Hi", tools=[tool]), 400).endswith(
            "does not support tools"
        )

    def test_too_long_without_truncate(self, server, model):
        long = "number " * 600
        message = error_of(server.chat(model, long, truncate=False), 400)
        assert "exceeds the available context size" in message
        assert server.chat(model, long).status_code == 200  # cut silently

    def test_wrong_option_type(self, server, model):
        answer = server.chat(model, "Hi", options={"temperature": "hot"})
        assert error_of(answer, 500) == 'option "temperature" must be of type float32'

    def test_unknown_model(self, server, name):
        assert error_of(server.chat(name, "Hi"), 404) == f"model '{name}' not found"
        assert error_of(server.chat("", "Hi"), 400) == "model is required"

    def test_load_and_unload(self, server, model):
        body = {"model": model, "messages": []}
        loaded = server.post("/api/chat", body).json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        running = [m["name"] for m in server.http.get("/api/ps").json()["models"]]
        assert model in running
        unloaded = server.post("/api/chat", {**body, "keep_alive": 0}).json()
        assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")

    @pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
    def test_unloading_needs_no_message_and_no_loaded_model(self, server, model, path):
        """How a client gives a server's memory back: source self does after its last question."""
        body = {"model": model, "keep_alive": 0, "stream": False}
        server.chat(model, "Hi")
        for _ in range(2):
            unloaded = server.post(path, body).json()
            assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
            wait_gone(server, model)
        unknown = server.post(path, {**body, "model": "nobody"})
        assert error_of(unknown, 404) == "model 'nobody' not found"
        assert server.chat(model, "Hi").status_code == 200

    def test_running_models(self, server, model):
        server.chat(model, "Hi")
        entry = next(m for m in server.http.get("/api/ps").json()["models"] if m["name"] == model)
        assert entry["digest"] == server.digest(model)
        assert entry["context_length"] >= 512
        assert {"size", "size_vram", "expires_at", "details"} <= entry.keys()


class TestGenerate:
    def test_whole_answer(self, server, model):
        body = {"model": model, "prompt": "Hi", "stream": False, "options": {"num_predict": 4}}
        answer = server.post("/api/generate", body).json()
        assert answer["response"]
        assert answer["done"] is True
        assert answer["eval_count"] <= 4
        assert answer["context"]

    def test_raw(self, server, model):
        body = {"model": model, "prompt": "2, 4, 6,", "raw": True, "stream": False}
        answer = server.post("/api/generate", {**body, "options": {"num_predict": 3}}).json()
        assert answer["prompt_eval_count"] < 20
        assert "context" not in answer
        refused = server.post("/api/generate", {**body, "system": "x"})
        message = "raw mode does not support template, system, or context"
        assert error_of(refused, 400) == message

    def test_stream(self, server, model):
        body = {"model": model, "prompt": "Count to ten.", "options": {"num_predict": 5}}
        *parts, last = server.lines("/api/generate", body)
        assert all("response" in part and not part["done"] for part in parts)
        assert last["done_reason"] == "length"

    def test_unknown_model(self, server, name):
        answer = server.post("/api/generate", {"model": name, "prompt": "x"})
        assert error_of(answer, 404) == f"model '{name}' not found"
