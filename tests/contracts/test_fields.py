"""A wrong field is named as it is written, and so is the one that was meant."""

import pytest
from pydantic import Field, ValidationError

from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest, invalid
from loco.contracts.fields import field_paths, nearest
from loco.recipes.fields import settable


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learning_rate", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("train.preference.lr", "train.preference.learning_rate"),
        ("train.learning_rat", "train.learning_rate"),
        ("train.epoch", "train.epochs"),
        ("num_train_epochs", "train.epochs"),
        ("per_device_train_batch_size", "train.batch_size"),
        ("max_seq_length", "train.max_length"),
        ("train.lora_alpha", "train.lora.alpha"),
        ("train.lora.rank", "train.lora.r"),
        ("eval.sets.held_out.cout", "eval.sets.held_out.count"),
        ("prepare.source.pth", "prepare.source.path"),
        ("prifile", "profile"),
        ("export.quant", "export.quantization"),
        ("zzz", None),
        ("x" * 100_000, None),
    ],
)
def test_the_field_that_was_meant(written: str, meant: str | None) -> None:
    assert nearest(written, settable()) == meant


def test_what_one_may_not_set_is_never_meant() -> None:
    fields = settable()
    assert "base_model" in fields
    assert not [f for f in fields if f.startswith(("train.base_model", "prepare.eval_sets"))]
    assert "register.probe" in fields
    assert "eval.sets.*.source.path" in fields


class _Inner(Contract):
    names: tuple[str, ...] | int = Field((), description="Either.")
    size: int = Field(1, description="How many.")


class _Outer(Contract):
    inner: _Inner = Field(description="One.")
    others: dict[str, _Inner] = Field({}, description="More.")
    either: _Inner | int = Field(1, description="Or a number.")


def fault(document: object) -> InvalidRequest:
    with pytest.raises(ValidationError) as caught:
        _Outer.model_validate(document)
    return invalid(caught.value, document, known=field_paths(_Outer))


def test_a_fault_in_a_union_names_the_field_and_every_choice() -> None:
    told = fault({"inner": {"names": "q_proj"}})
    assert told.param == "inner.names"
    assert told.message.startswith("inner.names: Input should be a list, or: Input should be")
    assert "(got 'q_proj')" in told.message
    assert fault({"inner": {"names": [1]}}).param == "inner.names.0"
    assert fault({"inner": {}, "either": {"size": "x"}}).param == "either.size"


def test_missing_and_unknown_fields() -> None:
    assert fault({}).param == "inner"
    told = fault({"inner": {}, "others": {"a": {"sise": 1}}})
    assert (told.param, "others.a.size?" in str(told.hint)) == ("others.a.sise", True)
