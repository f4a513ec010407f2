"""What a base model of the catalog must say."""

import pytest
from pydantic import ValidationError

from loco.contracts.specs import BaseModelSpec


@pytest.mark.parametrize("system", ["", " \n"])
def test_an_empty_system_prompt_is_refused(system: str) -> None:
    """It would be trained with, and left out where it is served."""
    base = {
        "name": "toy",
        "kind": "folder",
        "train": "toy",
        "merge": "toy",
        "ollama": "toy",
        "parameters_billion": 1,
    }
    assert BaseModelSpec(**base).system is None
    with pytest.raises(
        ValidationError, match=r"system\n.*leave it out for the chat template's own"
    ):
        BaseModelSpec(**base, system=system)
