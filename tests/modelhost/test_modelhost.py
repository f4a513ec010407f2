"""The stand-in's own behaviour: queue, memory, hang-ups, damage, restarts."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from loco_modelhost.store.gguf_file import GgufFile

THINKING_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{%- endfor %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- else %}{{- '<think>\\n' }}{%- endif %}"
)
#: An answer that takes minutes: its grammar lets it end only after 5,000 characters.
ENDLESS = {
    "options": {"temperature": 0, "num_ctx": 8192, "stop": []},
    "format": {"type": "string", "minLength": 5000},
}


@pytest.fixture(scope="module")
def thinker(own_host, weights_path: Path, tmp_path_factory) -> str:
    """SmolLM2 with a template that lets it think, so that the GGUF's own template renders."""
    path = tmp_path_factory.mktemp("thinker") / "thinker.gguf"
    with path.open("wb") as out:
        GgufFile.read(weights_path).copy_with("tokenizer.chat_template", THINKING_TEMPLATE, out)
    own_host.create("thinker", path.read_bytes(), template="{{ .Ignored }}")
    return "thinker:latest"


def rendered(host, model: str, **more: object) -> str:
    answer = host.chat(model, "Hi", _debug_render_only=True, **more).json()
    return answer["_debug_info"]["rendered_template"]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def loaded(host) -> list[str]:
    return [m["name"] for m in host.http.get("/api/ps").json()["models"]]


class TestThinking:
    def test_own_template_renders_whatever_template_was_sent(self, own_host, thinker):
        shown = own_host.post("/api/show", {"model": thinker}).json()
        assert shown["template"] == THINKING_TEMPLATE
        assert set(shown["capabilities"]) == {"completion", "thinking"}

    def test_unset_means_true(self, own_host, thinker):
        assert rendered(own_host, thinker).endswith("assistant\n<think>\n")
        assert rendered(own_host, thinker, think=True).endswith("assistant\n<think>\n")
        assert rendered(own_host, thinker, think=False).endswith("<think>\n\n</think>\n\n")

    def test_reasoning_has_a_field_of_its_own(self, own_host, thinker):
        message = own_host.chat(thinker, "Hi").json()["message"]
        assert message["thinking"]
        plain = own_host.chat(thinker, "Hi", think=False).json()["message"]
        assert plain["content"]
        assert "thinking" not in plain

    def test_long_prompts_are_refused_even_with_truncate(self, own_host, thinker):
        options = {"num_ctx": 64}
        answer = own_host.chat(thinker, "number " * 100, options=options)
        assert answer.status_code == 400
        assert "exceeds the available context size (64 tokens)" in answer.json()["error"]

    def test_old_turns_are_dropped_before_that(self, own_host, thinker):
        turns = [{"role": "user", "content": f"number {i} " * 10} for i in range(20)]
        body = {"model": thinker, "messages": [{"role": "system", "content": "S"}, *turns]}
        more = {"options": {"num_ctx": 128}, "_debug_render_only": True}
        text = own_host.post("/api/chat", body | more).json()["_debug_info"]["rendered_template"]
        assert text.startswith("<|im_start|>system\nS<|im_end|>")
        assert "number 19" in text
        assert "number 0" not in text


class TestQueue:
    def test_requests_of_one_model_all_get_the_same_answer(self, own_host):
        with ThreadPoolExecutor(6) as threads:
            answers = list(
                threads.map(lambda _: own_host.chat("smollm2:135m", "Name a colour."), range(6))
            )
        assert {a.status_code for a in answers} == {200}
        assert len({a.json()["message"]["content"] for a in answers}) == 1

    def test_parallel_requests_do_not_wait_and_get_the_same_answer(
        self, start_host, tmp_path, weights
    ):
        host = start_host(tmp_path, "--parallel", "2")
        host.create("m", weights)
        body = {"model": "m", "messages": [{"role": "user", "content": "Go on."}]}
        with host.http.stream("POST", "/api/chat", json={**body, **ENDLESS}) as running:
            lines = running.iter_lines()
            next(lines)
            beside = host.chat("m", "Name a colour.").json()
            assert not json.loads(next(lines))["done"]
        alone = host.chat("m", "Name a colour.").json()  # in the other slot
        assert beside["message"] == alone["message"]

    def test_too_many_are_turned_away(self, start_host, tmp_path, weights):
        host = start_host(tmp_path, "--most-waiting", "1")
        host.create("m", weights)
        body = {"model": "m", "messages": [{"role": "user", "content": "Go on."}]}
        with (
            host.http.stream("POST", "/api/chat", json={**body, **ENDLESS}) as running,
            ThreadPoolExecutor(2) as threads,
        ):
            lines = running.iter_lines()  # dropping the iterator would close the connection
            next(lines)
            others = [threads.submit(host.chat, "m", "Hi") for _ in range(2)]
            done, waiting = wait(others, return_when=FIRST_COMPLETED)
            running.close()
            refused = done.pop().result()
            assert refused.status_code == 503
            assert refused.json() == {
                "error": "server busy, please try again.  maximum pending requests exceeded"
            }
            assert waiting.pop().result().status_code == 200

    def test_a_client_that_hangs_up_frees_the_model(self, own_host):
        for stream in (True, False):
            with pytest.raises(httpx.ReadTimeout):
                own_host.http.post(
                    "/api/chat",
                    json={
                        "model": "smollm2:135m",
                        "messages": [{"role": "user", "content": "Write without end."}],
                        "stream": stream,
                        **ENDLESS,
                    },
                    timeout=httpx.Timeout(30, read=0.001 if stream else 1.5),
                )
            started = time.monotonic()
            assert own_host.chat("smollm2:135m", "Hi").status_code == 200
            assert time.monotonic() - started < 20


class TestMemory:
    def test_only_the_last_used_stay(self, start_host, tmp_path, weights):
        host = start_host(tmp_path, "--most-loaded", "2")
        digest = host.upload(weights)
        for name in ("a", "b", "c"):
            files = {"m.gguf": digest}
            # names share one GGUF, and so one place in memory: each needs weights of its own
            path = tmp_path / f"{name}.gguf"
            with path.open("wb") as out:
                GgufFile.read(tmp_path / "blobs" / digest.replace(":", "-")).copy_with(
                    "general.name", name, out
                )
            files = {"m.gguf": host.upload(path.read_bytes())}
            host.post("/api/create", {"model": name, "files": files, "stream": False})
            assert host.chat(name, "Hi").status_code == 200
        assert set(loaded(host)) == {"b:latest", "c:latest"}
        host.chat("b", "Hi")
        host.chat("a", "Hi")
        assert set(loaded(host)) == {"a:latest", "b:latest"}

    def test_keep_alive(self, own_host):
        own_host.chat("smollm2:135m", "Hi", keep_alive="4s")
        assert "smollm2:135m" in loaded(own_host)
        wait_until(lambda: "smollm2:135m" not in loaded(own_host))
        own_host.chat("smollm2:135m", "Hi", keep_alive=0)
        assert "smollm2:135m" not in loaded(own_host)
        own_host.chat("smollm2:135m", "Hi", keep_alive=-1)
        entry = own_host.http.get("/api/ps").json()["models"][0]
        assert entry["expires_at"].startswith("9999")
        wrong = own_host.chat("smollm2:135m", "Hi", keep_alive="soon")
        assert (wrong.status_code, wrong.json()["error"]) == (400, 'time: invalid duration "soon"')

    def test_unload_under_a_running_answer_waits_for_it(self, own_host):
        body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "Count."}]}
        options = {"temperature": 0, "num_predict": 40}
        with own_host.http.stream("POST", "/api/chat", json={**body, "options": options}) as answer:
            lines = answer.iter_lines()
            next(lines)
            gone = own_host.post("/api/chat", {"model": "smollm2:135m", "keep_alive": 0})
            assert gone.json()["done_reason"] == "unload"
            assert json.loads(list(lines)[-1])["done"] is True
        assert own_host.chat("smollm2:135m", "Hi").status_code == 200

    def test_context_grows_when_asked(self, own_host):
        long = "number " * 300
        options = {"num_ctx": 256, "num_predict": 1}
        assert (
            own_host.chat("smollm2:135m", long, truncate=False, options=options).status_code == 400
        )
        options = {"num_ctx": 512, "num_predict": 1}
        assert (
            own_host.chat("smollm2:135m", long, truncate=False, options=options).status_code == 200
        )


class TestStore:
    def test_models_outlive_a_restart(self, start_host, tmp_path, weights):
        first = start_host(tmp_path)
        first.create("kept", weights, system="S")
        digest = first.digest("kept:latest")
        first.process.kill()
        first.process.wait()
        second = start_host(tmp_path)
        assert second.digest("kept:latest") == digest
        assert second.chat("kept", "Hi").status_code == 200

    def test_old_leftovers_go_at_the_start(self, start_host, tmp_path):
        blobs = tmp_path / "blobs"
        blobs.mkdir()
        old, new = blobs / "incoming-old", blobs / f"sha256-{'a' * 64}"
        for path in (old, new):
            path.write_bytes(b"x")
        os.utime(old, (0, 0))
        start_host(tmp_path)
        assert not old.exists()
        assert new.exists()

    def test_deleting_the_last_name_frees_the_disk(self, start_host, tmp_path, weights):
        host = start_host(tmp_path)
        host.create("one", weights)
        host.post("/api/copy", {"source": "one", "destination": "two"})
        host.http.request("DELETE", "/api/delete", json={"model": "one"})
        assert host.chat("two", "Hi").status_code == 200
        host.http.request("DELETE", "/api/delete", json={"model": "two"})
        uploaded = hashlib.sha256(weights).hexdigest()
        assert [p.name for p in (tmp_path / "blobs").iterdir()] == [f"sha256-{uploaded}"]

    def test_broken_gguf_leaves_the_host_alive(self, own_host, weights):
        for broken in (weights[:50_000], weights[:-1], weights[:3000] + b"\xff" * 4000):
            files = {"m.gguf": own_host.upload(broken)}
            body = {"model": "broken", "files": files, "stream": False}
            answer = own_host.post("/api/create", body)
            assert answer.status_code == 500
            assert "GGUF" in answer.json()["error"]
        assert own_host.chat("smollm2:135m", "Hi").status_code == 200

    def test_names_created_and_deleted_side_by_side(self, own_host, weights):
        """They share every blob: a delete must not take one from under a create."""
        digest = own_host.upload(weights)
        errors: list[str] = []

        def churn(name: str) -> None:
            for _ in range(4):
                body = {"model": name, "from": "smollm2:135m", "system": "S", "stream": False}
                answers = [own_host.post("/api/create", body), own_host.chat(name, "Hi")]
                own_host.http.request("DELETE", "/api/delete", json={"model": name})
                errors.extend(a.text for a in answers if a.status_code != 200)

        threads = [threading.Thread(target=churn, args=(f"churn-{i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert own_host.http.head(f"/api/blobs/{digest}").status_code == 200


def test_a_hostile_name_stays_inside_the_folder(own_host, weights):
    files = {"m.gguf": own_host.upload(weights)}
    for name in ("../../x", "a/../../../x", "/etc/x:y", "x:../y", "x:.", "..:latest", ".hidden"):
        body = {"model": name, "files": files, "stream": False}
        answer = own_host.post("/api/create", body)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid model name")
