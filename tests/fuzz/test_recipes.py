"""Any YAML as a recipe, any JSON as a request: a spec or our error, never another exception."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from loco.contracts.errors import LocoError
from loco.contracts.requests import JobRequest
from loco.contracts.specs import STAGE_SPECS, JobSpec
from loco.recipes.resolve import adapter_names, load_recipe, resolve

ADAPTERS = Path(__file__).parents[2] / "adapters"
RECIPE = yaml.safe_load((ADAPTERS / "math" / "adapter.yaml").read_text())
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUE = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({name for spec in STAGE_SPECS.values() for name in spec.model_fields})
SECTION = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), VALUE, max_size=3)
TOP = st.sampled_from([*RECIPE, "seed", "stages"]) | st.text(max_size=8)
YAML_BITS = ["a", ":", " ", "\n", "- ", "{", "}", "[", "]", "&x ", "*x", "<<: ", "!!", "!!int ", "? ",
             "|", ">", "'", '"', "#", "%", "@", "0x", "1e9", ".inf", "2026-99-99", "12:61", "\t", "---",
             "\u2028", "\x07", "=", "~", "!!binary ", "!!python/object:os.system "]  # fmt: skip
HOSTILE = {
    "long number": f"a: {'9' * 5000}",
    "no month 99": "a: 2026-99-99",
    "base 60": "a: " + "9:" * 3000 + "1",
    "deep list": "a: " + "[" * 5000 + "]" * 5000,
    "deep block": "\n".join(" " * n + "a:" for n in range(1500)),
    "a key of lists": "? [a, b]\n: c",
    "python": "a: !!python/object/apply:os.system [echo]",
    "binary": "a: !!binary \u00e9",
    "itself": "a: &x [*x]",
    "not utf-8": b"a: \xff\xfe",
    "merge of a text": "<<: a",
    "a surrogate": 'a: "\\uD800"',
    "nul": "a: \0",
    "int of nothing": "a: !!int ''",
    "float of nothing": "a: !!float ''",
    "bool of nothing": "a: !!bool x",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapters folder whose recipe `math` the tests write."""
    made = tmp_path_factory.mktemp("adapters")
    (made / "math").mkdir()
    (made / "base_models.yaml").write_bytes((ADAPTERS / "base_models.yaml").read_bytes())
    return made


def used(folder: Path, content: str | bytes) -> None:
    """Reads a recipe and resolves it in all its profiles."""
    data = content if isinstance(content, bytes) else content.encode(errors="replace")
    (folder / "math" / "adapter.yaml").write_bytes(data)
    assert adapter_names(folder) == ["math"]
    try:
        recipe = load_recipe(folder, "math")
        for profile in recipe.profile_names:
            spec = resolve(folder, JobRequest(adapter="math", profile=profile))
            JobSpec.model_validate_json(spec.model_dump_json(by_alias=True))
    except LocoError as error:
        assert error.user_fault
        json.dumps(error.body.model_dump()).encode()


@given(text=st.lists(st.sampled_from(YAML_BITS), max_size=40).map("".join) | st.text(max_size=80))
def test_any_text_as_a_recipe(folder, text):
    used(folder, text)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes(folder, name):
    used(folder, HOSTILE[name])


@given(changes=st.dictionaries(TOP, SECTION | VALUE, max_size=3))
@example(changes={"profiles": {"tiny": {"train": {"epochs": float("nan")}}}})
def test_a_recipe_with_any_changes(folder, changes):
    document = yaml.safe_dump({**RECIPE, **changes}, allow_unicode=True)
    used(folder, document)


@given(
    asked=st.dictionaries(
        st.sampled_from(["prepare", "train", "export", "register", "eval"]), SECTION, max_size=2
    ),
    more=st.fixed_dictionaries(
        {},
        optional={
            "profile": st.text(max_size=5),
            "base_model": st.text(max_size=5),
            "seed": SCALAR,
        },
    ),
)
def test_a_request_with_any_overrides(asked, more):
    try:
        request = JobRequest.model_validate({"adapter": "math", **asked, **more})
    except ValueError:
        return
    try:
        spec = resolve(ADAPTERS, request)
    except LocoError as error:
        assert error.user_fault
        return
    assert JobSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


@given(
    name=st.text(max_size=20)
    | st.sampled_from(["..", ".", "", "/", "math/..", "math\n", "a" * 300])
)
def test_no_name_leads_outside(name):
    try:
        assert load_recipe(ADAPTERS, name).name == name
    except LocoError as error:
        assert error.user_fault
