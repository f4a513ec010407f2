"""The reference pages say what the code says."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


def test_the_pages_are_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages()
    assert "## loco submit\n" in pages["cli.md"]
    assert "## POST /jobs\n" in pages["api.md"]
    assert "| `LOCO_PORT` | `8321` |" in pages["settings.md"]
    stale = [name for name, text in pages.items() if (FOLDER / name).read_text() != text]
    assert stale == [], "run `make reference`"
