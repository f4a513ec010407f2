"""A package that was hidden can be shown again, also to libraries that looked for it in vain."""

import sys
from pathlib import Path

import pytest
from peft import import_utils

from loco_trainer.machine.imports import hide, is_installed, show

NAME = "bitsandbytes"


def test_what_was_hidden_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "__init__.py").write_text("HERE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        hide(NAME)
        import_utils.is_bnb_available.cache_clear()
        assert not import_utils.is_bnb_available()
        assert is_installed(NAME)
        show(NAME)
        assert import_utils.is_bnb_available()
        assert __import__(NAME).HERE
    finally:
        sys.modules.pop(NAME, None)
        import_utils.is_bnb_available.cache_clear()


def test_what_is_not_there_is_not_shown() -> None:
    show("no_such_package")
    assert not is_installed("no_such_package")
