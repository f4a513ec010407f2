"""Templates, schemas and options that take all memory or time.

`{{ 'x' * 10**9 }}` took all RAM of the machine. Templates and grammars are made in a child with 1 GB
and 10 s; the host and its other models answer on.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_gguf

from loco_modelhost.engine.session import Facts
from loco_modelhost.prompts import child, templates
from loco_modelhost.prompts.child import CPU_SECONDS, LONGEST_TEXT
from loco_modelhost.prompts.confined import Confined
from loco_modelhost.prompts.templates import render_jinja
from loco_modelhost.requests.body import MOST_MESSAGES
from loco_modelhost.requests.refusals import Refusal

MESSAGES = [{"role": "user", "content": "hi"}]


FACTS = Facts(adds_bos=False, bos="<s>", eos="</s>")


class Asked:
    """A child and the loop that it is asked from."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.confined = Confined(seconds=3)

    def render(self, template: str) -> str:
        asked = self.confined.render(template, MESSAGES, FACTS, think=False)
        return self._runner.run(asked)

    def end(self) -> None:
        self._runner.run(self.confined.ended())

    def grammar(self, form: Any) -> str:
        return self._runner.run(self.confined.grammar(form))


@pytest.fixture
def confined() -> Iterator[Asked]:
    with asyncio.Runner() as runner:
        found = Asked(runner)
        yield found
        found.end()


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**9 * 9 }}",
        "{{ ('x' * 10**8) | upper | list }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' * 20000000 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ [].__class__.__base__.__subclasses__() }}",
        "{{ '%0999999999d' % 1 }}",
        "{% for",
    ],
)
def test_a_bomb_is_refused_and_the_next_rendered(confined: Asked, template: str) -> None:
    with pytest.raises(Refusal) as refused:
        confined.render(template)
    assert refused.value.status == 500
    assert refused.value.message
    assert confined.render("{{ bos_token }}{{ messages[0].content }}") == "<s>hi"


def test_the_child_knows_nothing_of_the_servers_variables(
    confined: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCO_SECRET", "canary")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    confined.render("{{ 1 }}")
    process = psutil.Process(confined.confined.pid)
    known = process.environ()
    assert "canary" not in known.values()
    # what its libraries need: they are found, and take no memory for each core
    assert known["LD_LIBRARY_PATH"] == "/opt/lib"
    assert known["OPENBLAS_NUM_THREADS"] == "1"
    # its faults are seen: it writes where the server does
    ours, its = (os.readlink(f"/proc/{pid}/fd/2") for pid in (os.getpid(), process.pid))
    assert its == ours


def test_templates_seen_before_are_not_kept_for_ever() -> None:
    for number in range(40):
        render_jinja(str(number), [], bos="", eos="", think=False, add_bos=False)
    assert templates._compiled.cache_info().currsize <= 16


def test_where_memory_has_no_limit_it_is_said_once(
    confined: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child, "STATM", Path("/proc/none"))
    for _ in range(2):
        assert confined.render("{{ 1 }}") == "1"
        confined.end()
    assert caplog.text.count("not in memory") == 1


def test_a_child_has_its_own_limit_on_cpu_time(confined: Asked) -> None:
    """For the case that the host died while it rendered: then nobody looks at the clock."""
    confined.render("{{ 1 }}")
    assert confined.confined.pid
    soft, _ = psutil.Process(confined.confined.pid).rlimit(psutil.RLIMIT_CPU)
    assert CPU_SECONDS <= soft <= 2 * CPU_SECONDS


def test_a_schema_is_bounded_too(confined: Asked) -> None:
    assert "root ::=" in confined.grammar({"type": "integer"})
    nested: dict[str, Any] = {"type": "integer"}
    for _ in range(300):
        nested = {"type": "array", "items": nested}
    for schema in (
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9, "minItems": 10**9},
        {"$ref": "#/nowhere"},
        nested,
    ):
        with suppress(Refusal):
            assert len(confined.grammar(schema)) <= LONGEST_TEXT
    assert "root ::=" in confined.grammar({"type": "integer"})


@pytest.mark.parametrize(
    "options",
    [
        {"num_ctx": -1},
        {"num_ctx": 0},
        {"num_ctx": 10**30},
        {"num_predict": 1e400},
        {"temperature": float("nan")},
        {"seed": -(10**30)},
        {"stop": ["x"] * 1000},
        {"stop": ["x" * 10_000]},
    ],
)
def test_an_option_out_of_bounds_is_refused(own_host, options: dict[str, Any]) -> None:
    body = {"model": "smollm2:135m", "messages": MESSAGES, "stream": False, "options": options}
    answer = own_host.http.post("/api/chat", content=json.dumps(body).encode())
    assert answer.status_code == 400, answer.text
    assert own_host.process.poll() is None


def test_deep_json_is_refused(own_host) -> None:
    answer = own_host.http.post("/api/chat", content=b'{"messages": ' + b"[" * 200_000)
    assert answer.status_code == 400


@pytest.mark.parametrize("keep_alive", ["NaN", "1e999", "9" * 400])
def test_a_time_to_stay_is_a_number(own_host, keep_alive: str) -> None:
    body = f'{{"model": "smollm2:135m", "prompt": "", "keep_alive": {keep_alive}}}'
    answer = own_host.http.post("/api/generate", content=body.encode())
    assert answer.status_code == (400 if keep_alive == "NaN" else 200), answer.text
    own_host.chat("smollm2:135m", "1 + 1?", keep_alive="5m")


def test_more_messages_than_a_context_takes_are_refused(own_host) -> None:
    def chat(count: int) -> Any:
        body = {"model": "smollm2:135m", "stream": False, "messages": MESSAGES * count}
        return own_host.post("/api/chat", body | {"options": {"num_predict": 1, "num_ctx": 64}})

    assert chat(MOST_MESSAGES + 1).status_code == 400
    assert chat(300).status_code == 200


def test_half_a_character_is_replaced_as_in_go(own_host) -> None:
    body = b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}'
    answer = own_host.http.post("/api/chat", content=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid model name")
    for text in ("\\ud800", "\\udfff x", "\\ud83c\\udf89"):
        body = f'{{"model": "smollm2:135m", "stream": false, "options": {{"num_predict": 1}}, "prompt": "{text}"}}'
        assert own_host.http.post("/api/generate", content=body.encode()).status_code == 200


def test_a_template_delays_only_its_own_model(own_host, tmp_path: Path) -> None:
    """While one computes for seconds, others answer; so does the host itself."""
    slow = "{% for a in range(300) %}{% for b in range(99999) %}{% endfor %}{% endfor %}<think></think>"
    path = tmp_path / "slow.gguf"
    own_host.create("slow", tiny_gguf.write(path, {"tokenizer.chat_template": ("string", slow)}))
    beside = 0
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(own_host.chat, "slow", "Hi")
        while not waiting.done():
            assert own_host.http.get("/api/version").status_code == 200
            other = own_host.chat("smollm2:135m", "1 + 1?", options={"num_predict": 1})
            assert other.status_code == 200
            beside += not waiting.done()
        assert waiting.result().status_code in (200, 500)  # 500: on a machine too busy for its time
    assert beside
    own_host.http.request("DELETE", "/api/delete", json={"model": "slow"})
