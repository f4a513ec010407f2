"""docs/recipes.md describes every field a recipe may set, in the words of the code."""

from pathlib import Path

import pytest

from loco.contracts.base import Contract
from loco.contracts.specs import (
    ArithmeticSource,
    BaseModelSpec,
    EvalSpec,
    ExportSpec,
    HeldOut,
    HuggingFaceSource,
    JsonlSource,
    LoraSpec,
    PrepareSpec,
    ReasoningGymSource,
    RegisterSpec,
    TrainSpec,
)

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


@pytest.mark.parametrize(
    "model",
    [
        ArithmeticSource,
        BaseModelSpec,
        EvalSpec,
        ExportSpec,
        HeldOut,
        HuggingFaceSource,
        JsonlSource,
        LoraSpec,
        PrepareSpec,
        ReasoningGymSource,
        RegisterSpec,
        TrainSpec,
    ],
)
def test_every_field_is_described(model: type[Contract]) -> None:
    missing = [
        name
        for name, field in model.model_fields.items()
        if f"`{field.alias or name}`" not in PAGE or (field.description or "") not in PAGE
    ]
    assert [m for m in missing if m != "kind"] == []
