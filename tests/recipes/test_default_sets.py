"""What a job is measured on whose recipe names no eval set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loco.contracts.errors import InvalidRequest
from loco.contracts.evaluation import Role
from loco.contracts.requests import JobRequest
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.recipes.resolve import resolve

ROWS = {"kind": "jsonl", "path": "rows.jsonl"}


@pytest.fixture
def ask(adapters_dir: Path) -> Callable[..., JobSpec]:
    """Resolves a request for `towns`, whose recipe has these fields of eval."""

    def ask(recipe: dict[str, Any] | None = None, **request: Any) -> JobSpec:
        text: dict[str, Any] = {
            "name": "towns",
            "description": "Towns.",
            "base_model": "qwen3-4b",
            "model_name": "locollm-towns",
            "prepare": {"source": ROWS},
        }
        if recipe is not None:
            text["eval"] = recipe
        (adapters_dir / "towns").mkdir(exist_ok=True)
        (adapters_dir / "towns" / "adapter.yaml").write_text(yaml.safe_dump(text))
        return resolve(adapters_dir, JobRequest.model_validate({"adapter": "towns", **request}))

    return ask


@pytest.mark.parametrize("recipe", [None, {}, {"sets": None}, {"num_ctx": 512}])
@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        {"kind": "dataset", "dataset": "mine"},
        {"kind": "huggingface", "dataset": "openai/gsm8k"},
        {"kind": "self", "questions": ROWS},
    ],
)
def test_rows_are_held_back(ask: Any, recipe: Any, source: dict[str, Any]) -> None:
    spec = ask(recipe, prepare={"source": source})
    assert {name: s.source.kind for name, s in spec.eval.sets.items()} == {"split": "split"}
    assert spec.eval.sets["split"].role is Role.PRIMARY
    assert spec.prepare.eval_sets["split"].source == spec.eval.sets["split"].source
    assert Stage.EVAL in spec.stages
    assert spec.eval.gate.min_problems == 10
    assert JobSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_a_gate_that_is_set_stays_as_it_is(ask: Any) -> None:
    spec = ask({"gate": {"min_problems": 50, "policy": "better"}})
    assert (spec.eval.gate.min_problems, spec.eval.gate.policy) == (50, "better")
    assert ask({"gate": {"policy": "better"}}).eval.gate.min_problems == 10


def test_the_eval_set_beside_the_recipe_comes_first(ask: Any, adapters_dir: Path) -> None:
    ask()
    (adapters_dir / "towns" / "eval_dataset.jsonl").write_text("{}\n")
    spec = ask()
    assert {n: s.role for n, s in spec.eval.sets.items()} == {"benchmark": Role.PRIMARY}
    assert spec.eval.gate.min_problems == 100


def test_a_generator_makes_problems_of_its_own(ask: Any) -> None:
    spec = ask(prepare={"source": {"kind": "arithmetic"}})
    assert {n: s.source.kind for n, s in spec.eval.sets.items()} == {"held_out": "arithmetic"}
    assert spec.eval.sets["held_out"].count == 200


def test_no_sets_written_out_is_no_eval(ask: Any) -> None:
    for spec in (ask({"sets": {}}), ask({"sets": {"split": None}})):
        assert not spec.eval.sets
        assert not spec.prepare.eval_sets
        assert Stage.EVAL not in spec.stages


def test_sets_that_are_named_are_all_there_are(ask: Any) -> None:
    named = {"mine": {"source": {"kind": "jsonl", "path": "mine.jsonl"}, "role": "guard"}}
    assert set(ask({"sets": named}).eval.sets) == {"mine"}
    assert set(ask(eval={"sets": named}).eval.sets) == {"mine"}
    both = named | {"kept": {"source": {"kind": "split", "most": 50}, "role": "primary"}}
    assert set(ask({"sets": both}).prepare.eval_sets) == {"mine", "kept"}


@pytest.mark.parametrize(
    ("sets", "source", "param"),
    [
        ({"a": {"source": {"kind": "split"}}, "b": {"source": {"kind": "split"}}}, ROWS, ""),
        ({"a": {"source": {"kind": "split"}, "count": 20}}, ROWS, ".a.count"),
        ({"a": {"source": {"kind": "split"}}}, {"kind": "arithmetic"}, ".a.source"),
        ({"a": {"source": {"kind": "split", "share": 0.6}}}, ROWS, ".a.source.share"),
    ],
    ids=["two", "count", "generator", "share"],
)
def test_what_cannot_be_held_back_is_refused(
    ask: Any, sets: dict[str, Any], source: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask({"sets": sets}, prepare={"source": source})
    assert caught.value.param == f"eval.sets{param}"
    assert caught.value.hint
