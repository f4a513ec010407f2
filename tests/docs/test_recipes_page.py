"""docs/recipes.md describes every field a recipe may set, in the words of the code."""

from pathlib import Path

import pytest

from loco.contracts import evaluation, sources, specs
from loco.contracts.base import Contract

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


@pytest.mark.parametrize(
    "model",
    [
        sources.ArithmeticSource,
        specs.BaseModelSpec,
        specs.EvalSpec,
        specs.ExportSpec,
        evaluation.EvalSet,
        evaluation.GateSpec,
        sources.HuggingFaceSource,
        sources.JsonlSource,
        specs.LoraSpec,
        specs.PrepareSpec,
        sources.ReasoningGymSource,
        specs.RegisterSpec,
        sources.SelfSource,
        specs.TrainSpec,
    ],
)
def test_every_field_is_described(model: type[Contract]) -> None:
    missing = [
        name
        for name, field in model.model_fields.items()
        if f"`{field.alias or name}`" not in PAGE or (field.description or "") not in PAGE
    ]
    assert [m for m in missing if m != "kind"] == []
