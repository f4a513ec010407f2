"""The bases that come with locollm: each resolves, is planned and has the size its publisher names."""

from pathlib import Path

import pytest

from loco.contracts.errors import OutOfMemory, UnknownBaseModel
from loco.contracts.plans import Lengths
from loco.contracts.previews import AskedDevice
from loco.contracts.requests import JobRequest
from loco.planning.facts import device_of, shape_of
from loco.planning.planner import make_plan
from loco.recipes.catalog import base_model, load_catalog
from loco.recipes.resolve import adapter_names, load_recipe, resolve

ADAPTERS = Path(__file__).parents[2] / "adapters"
BASES = load_catalog(ADAPTERS)
FULL = Lengths(rows=200, tokens=204_800, answer_tokens=122_880, p50=1024, p95=1024, longest=1024)
#: What the 4B's vision tower has beside the language model whose shape is planned.
_SEES = {"gemma3-4b-it": 0.42}


@pytest.mark.parametrize("name", BASES)
def test_a_base_has_the_size_its_publisher_names(name: str, tmp_path: Path) -> None:
    """A mistyped field of a config shows in the parameters that follow from it."""
    base = BASES[name]
    counted = shape_of(base, tmp_path).parameters / 1e9 + _SEES.get(name, 0)
    assert counted == pytest.approx(base.parameters_billion, rel=0.02)
    assert base.license
    assert base.stop


@pytest.mark.parametrize("name", BASES)
def test_a_base_resolves_in_every_profile_of_every_recipe(name: str, tmp_path: Path) -> None:
    for adapter in adapter_names(ADAPTERS):
        for profile in load_recipe(ADAPTERS, adapter).profile_names:
            asked = JobRequest(adapter=adapter, profile=profile, base_model=name)
            spec = resolve(ADAPTERS, asked)
            assert spec.train.base_model == spec.export.base_model == BASES[name]
            assert spec.register_.model_name.startswith(f"locollm-{adapter}")


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_planned_on_a_card_of_24_gb_and_not_where_nothing_fits(
    name: str, tmp_path: Path
) -> None:
    spec = resolve(ADAPTERS, JobRequest(adapter="math", profile="gold", base_model=name)).train
    shape = shape_of(spec.base_model, tmp_path)
    card, _ = device_of(AskedDevice(memory_gb=24, name="RTX 4090"), [])
    plan = make_plan(spec, shape, FULL, card, engine="peft")
    assert plan.memory_gb < 24
    plain = shape.model_type in ("llama", "qwen2", "qwen3", "smollm3")
    assert plan.padding_free in ((False, True) if plain else (False,))
    none, _ = device_of(AskedDevice(memory_gb=0.2), [])
    with pytest.raises(OutOfMemory):
        make_plan(spec, shape, FULL, none, engine="peft")


def test_a_misspelt_base_is_guessed() -> None:
    with pytest.raises(UnknownBaseModel) as caught:
        base_model(ADAPTERS, "qwen2.5-1.5b-instuct")
    assert "Did you mean qwen2.5-1.5b-instruct?" in (caught.value.hint or "")


def test_a_base_with_dots_serves_under_a_name_without() -> None:
    asked = JobRequest(adapter="math", base_model="qwen2.5-1.5b-instruct")
    spec = resolve(ADAPTERS, asked)
    assert spec.register_.model_name == "locollm-math-qwen2-5-1-5b-instruct"
