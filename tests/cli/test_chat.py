"""`loco chat` against the real API, in front of a server that speaks like Ollama."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from versions import MODEL, Builder

from loco.contracts.evaluation import Verdict

pytestmark = pytest.mark.redis

LOCO = Path(sys.executable).with_name("loco")


class Speaker:
    """What Ollama holds and was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.absent: set[str] = set()
        self.breaks = False
        #: The second half of an answer waits for it.
        self.holds = threading.Event()
        self.holds.set()


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def live_settings(live_settings, speaker, serve):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            speaker.asked.append(body)
            if body["model"] in speaker.absent:
                told = {"error": {"message": f"model '{body['model']}' not found", "type": "x"}}
                raw = json.dumps(told).encode()
                self.send_response(404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            question = body["messages"][-1]["content"]
            for half, word in enumerate((f"{body['model']} says: ", f"\x1b[2J{question}!")):
                if half:
                    speaker.holds.wait(30)
                delta = {"choices": [{"delta": {"role": "assistant", "content": word}}]}
                try:
                    self.wfile.write(f"data: {json.dumps(delta)}\n\n".encode())
                    self.wfile.flush()
                except OSError:
                    return
                if speaker.breaks:
                    return
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: object) -> None:
            return

    return live_settings.model_copy(update={"ollama_host": serve(Handler)})


@pytest.fixture
def build(ledger, spec) -> Builder:
    return Builder(ledger, spec)


def test_the_version_that_serves_answers_with_its_own_options(run, build, speaker):
    code, _, told = run("chat", "math", "hello")
    assert (code, "No version of 'math' is serving" in told) == (2, True)
    assert "loco submit math" in told
    job = build.promoted()
    code, out, told = run("chat", "math", "2+2?")
    assert (code, out) == (0, f"{MODEL}:latest says: \\x1b[2J2+2?!\n"), told
    asked = speaker.asked[-1]
    assert asked["messages"] == [{"role": "user", "content": "2+2?"}], "the model has its system"
    assert (asked["temperature"], asked["reasoning_effort"]) == (0.0, "none")
    assert asked["max_tokens"] == 512, "a base may never end"
    assert run("chat", "math", "x", "--base")[1].startswith("smollm2:135m says: ")
    refused = build.registered()
    build.measured(refused, Verdict.REFUSED, compared=1)
    for chosen in (("--version", "2"), ("--job", refused.id[-6:])):
        out = run("chat", "math", "x", *chosen)[1]
        assert out.startswith(f"{MODEL}:{refused.id} says: "), "a candidate has its own name"
    code, _, told = run("chat", "math", "x", "--version", "9")
    assert (code, "has no version 9" in told) == (2, True)
    code, _, told = run("chat", "math", "x", "--version", "1", "--job", job.id)
    assert (code, "both choose a version" in told) == (2, True)
    speaker.absent.add(f"{MODEL}:latest")
    code, _, told = run("chat", "math", "x")
    assert (code, "loco setup math --version 1" in told) == (2, True)


def test_both_answer_beside_each_other(run, build, speaker):
    job = build.promoted()
    out = run("chat", "math", "x", "--side-by-side")[1]
    assert out.splitlines() == [
        "base: smollm2:135m",
        "smollm2:135m says: \\x1b[2Jx!",
        f"version 1: {MODEL}:latest",
        f"{MODEL}:latest says: \\x1b[2Jx!",
    ], "on a pipe one below the other"
    told = json.loads(run("chat", "math", "x", "--side-by-side", "--json")[1])
    assert [(a["who"], a["model"]) for a in told["answers"]] == [
        ("base", "smollm2:135m"),
        ("version 1", f"{MODEL}:latest"),
    ]
    speaker.breaks = True
    code, _, said = run("chat", "math", "x")
    assert (code, "The answer broke off" in said) == (1, True)
    assert job.id


def test_a_question_comes_by_a_pipe(environment, build, tmp_path):
    build.promoted()

    def piped(text: str) -> "subprocess.CompletedProcess[str]":
        words = [str(LOCO), "chat", "math"]
        return subprocess.run(
            words,
            input=text,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert piped("from a\npipe\n").stdout.endswith("from a\npipe!\n")
    told = piped("")
    assert (told.returncode, "brought no question" in told.stderr) == (2, True)


def test_a_conversation_remembers_and_ctrl_c_ends_an_answer_first(
    environment, build, speaker, tmp_path
):
    build.promoted()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [str(LOCO), "chat", "math"],
        env={**environment, "TERM": "xterm", "COLUMNS": "80"},
        cwd=tmp_path,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            seen += os.read(master, 4096)
        seen = seen.partition(words)[2]

    try:
        until(b"> ")
        os.write(master, b"one\n")
        until(b"one!")
        until(b"> ")
        speaker.holds.clear()
        os.write(master, b"two\n")
        until(b"says: ")
        process.send_signal(signal.SIGINT)
        until(b"Stopped.")
        speaker.holds.set()
        until(b"> ")
        os.write(master, b"three\n")
        until(b"three!")
        until(b"> ")
        os.write(master, b"/bye\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    roles = [(m["role"], m["content"].partition(" ")[0]) for m in speaker.asked[-1]["messages"]]
    name = f"{MODEL}:latest"
    assert roles == [
        ("user", "one"),
        ("assistant", name),
        ("user", "two"),
        ("assistant", name),
        ("user", "three"),
    ]
