"""Recipes that are small to read and huge to build.

Nine lines of aliases to aliases took 37 s of CPU on every `GET /adapters`; a list in a list 100,000
deep crashes libyaml, and the process with it.
"""

import time
from pathlib import Path

import httpx
import pytest
import yaml
from live_api import ApiServer

from loco.contracts.errors import InvalidRequest
from loco.recipes import documents
from loco.recipes.documents import DEEPEST, LARGEST_BYTES, parsed_yaml, read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 20,000 values"),
        ("[" * 100_000 + "]" * 100_000, "levels deep"),
        ("- " * 100_000, "levels deep"),
        ("a: &a [*a]", "has no anchor before it"),
        ("a: *b", "has no anchor before it|undefined alias"),
        ("a: 1\nb: 2\na: 3", "the key appears twice"),
        ("1: a\n'1': b", "the key appears twice"),
        ("&x a: 1\n*x : 2", "the key appears twice"),
        ("{" * 50_000, "levels deep"),
        ("[" + "x," * 30_000 + "]", "more than 20,000 values"),
    ],
)
def test_a_bomb_is_refused_before_it_is_built(text: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(yaml.YAMLError, match=words):
        parsed_yaml(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"a: {'1' * 5000}", "a number of 5,000 characters"),
        # 4 s of CPU: YAML 1.1 counts by sixty, and Python multiplies as long as it takes
        ("a: 1" + ":1" * 100_000, "a number of 200,001 characters"),
        ("a: 0x" + "f" * 200_000, "a number of"),
        ("a: !!int '1" + ":1" * 500 + "'", "a number of"),
        ("a: 2026-99-99", "month"),
        ("a: !!timestamp today", "cannot be read"),
        ("a: !!bool perhaps", "cannot be read"),
        ("a: !!int ''", "cannot be read"),
    ],
)
def test_what_python_cannot_build_is_an_error_too(text: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(yaml.YAMLError, match=words):
        parsed_yaml(text)
    assert time.process_time() - began < 2


@pytest.mark.redis
def test_one_broken_recipe_costs_itself_only(live_api: ApiServer, adapters_dir: Path) -> None:
    """A date that is none, or numbers by sixty, were a 500 for the whole list."""
    texts = ["a: !!timestamp today", "a: 1" + ":1" * 200 + ".5", LAUGHS, "- x"]
    for n, text in enumerate(texts):
        folder = adapters_dir / f"broken{n}"
        folder.mkdir()
        (folder / "adapter.yaml").write_text(text)
    answer = httpx.get(f"{live_api.url}/adapters", trust_env=False, timeout=60)
    assert answer.status_code == 200
    found = {entry["name"]: entry["error"] for entry in answer.json()["data"]}
    for name in ("analysis", "code", "math"):
        assert found.pop(name) is None
    assert sorted(found) == [f"broken{n}" for n in range(len(texts))]
    assert all(error["code"] == "invalid_request" for error in found.values())


def test_what_recipes_use_is_read_as_before() -> None:
    text = "base: &base {a: 1, b: [x, 2.5, null]}\nmore: *base\nmerged: {<<: *base, a: 2}\n"
    assert parsed_yaml(text) == yaml.safe_load(text)
    assert parsed_yaml("") is None
    nested = "[" * DEEPEST + "]" * DEEPEST
    assert parsed_yaml(nested) == yaml.safe_load(nested)


def test_a_recipe_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def counting(text: str) -> object:
        parsed.append(text)
        return parsed_yaml(text)

    monkeypatch.setattr(documents, "parsed_yaml", counting)
    path = tmp_path / "adapter.yaml"
    path.write_text("a: {b: 1}")
    first = read_yaml(path)
    first["a"]["b"] = "changed by who asked"
    assert read_yaml(path) == {"a": {"b": 1}}
    assert len(parsed) == 1
    path.write_text("a: {b: 2}")
    assert read_yaml(path) == {"a": {"b": 2}}


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("a: " + "x" * LARGEST_BYTES)
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    nothing = tmp_path / "latin.yaml"
    nothing.write_bytes(b"a: \xff")
    sexagesimal = tmp_path / "sixty.yaml"
    sexagesimal.write_text("a: " + "1:" * 200 + "1.5")
    for path in (large, loop, nothing, sexagesimal):
        with pytest.raises(InvalidRequest):
            read_yaml(path)
