"""Templates, schemas and options that take all memory or time.

`{{ 'x' * 10**9 }}` took all RAM of the machine. Templates and grammars are made in a child with 1 GB
and 10 s; the host and its other models answer on.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from loco_modelhost.prompts.child import LONGEST_TEXT
from loco_modelhost.prompts.confined import Confined
from loco_modelhost.requests.refusals import Refusal

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def confined() -> Iterator[Confined]:
    found = Confined(seconds=5)
    yield found
    found.close()


def render(confined: Confined, template: str) -> str:
    return confined.render(template, MESSAGES, bos="<s>", eos="</s>", think=False, add_bos=False)


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
def test_a_bomb_is_refused_and_the_next_rendered(confined: Confined, template: str) -> None:
    with pytest.raises(Refusal) as refused:
        render(confined, template)
    assert refused.value.status == 500
    assert refused.value.message
    assert render(confined, "{{ bos_token }}{{ messages[0].content }}") == "<s>hi"


def test_the_child_knows_nothing_of_the_servers_variables(
    confined: Confined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCO_SECRET", "canary")
    render(confined, "{{ 1 }}")
    assert confined._child is not None
    with open(f"/proc/{confined._child.pid}/environ", "rb") as file:
        assert b"canary" not in file.read()


def test_a_schema_is_bounded_too(confined: Confined) -> None:
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
