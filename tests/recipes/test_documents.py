"""A YAML file that cannot be read: its line, and what to do."""

from pathlib import Path

import pytest

from loco.contracts.errors import InvalidRequest
from loco.drafting.folders import parsed
from loco.recipes.documents import read_yaml

GOOD = "name: desk\nbase_model: tiny\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "description: Which desk: the left one\n", 3),
        (GOOD + "\tdescription: tab\n", 3),
        (GOOD + "name: again\n", 3),
        (GOOD + "train: {epochs: 3\nprepare: {}\n", 4),
    ],
)
def test_the_line_is_named_and_a_fix(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "adapter.yaml"
    file.write_text(text)
    for read in (lambda: read_yaml(file), lambda: parsed(text, str(file))):
        with pytest.raises(InvalidRequest) as refused:
            read()
        assert refused.value.message.startswith(f"{file}, line {line}: not valid YAML: ")
        assert "unicode string" not in refused.value.message
        assert "\n" not in refused.value.message
        assert f"line {line}" in str(refused.value.hint)


def test_bytes_that_are_no_text_have_a_fix_too(tmp_path: Path) -> None:
    file = tmp_path / "adapter.yaml"
    file.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(InvalidRequest, match="not valid YAML") as refused:
        read_yaml(file)
    assert "UTF-8" in str(refused.value.hint)


def test_a_character_that_yaml_does_not_take_has_a_fix_too() -> None:
    with pytest.raises(InvalidRequest, match="not valid YAML") as refused:
        parsed("name: \x07desk\n", "adapter.yaml")
    assert "unicode string" not in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.hint
