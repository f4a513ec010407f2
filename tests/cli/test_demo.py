"""The demo leaves the folders of a `loco up` beside it alone."""

import pytest

from loco.cli import demo
from loco.contracts.errors import LocoError
from loco.contracts.requests import JobRequest
from loco.recipes.resolve import resolve


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def recipe_of(adapters_dir):
    """What the demo's recipe is made of."""
    there = content(adapters_dir)
    return {p: text for p, text in there.items() if p.parts[0] in ("base_models.yaml", "math")}


def test_only_what_the_recipe_is_made_of_is_copied(adapters_dir, tmp_path):
    wanted = recipe_of(adapters_dir)
    assert len(wanted) >= 3
    (adapters_dir / "registry.yaml").write_text("adapters: {}")
    (adapters_dir / "math" / "training_data.jsonl").write_text("{}")
    (adapters_dir / "math" / "runs").mkdir()
    (adapters_dir / "math" / "runs" / "x.jsonl").write_text("{}")
    target = tmp_path / "demo" / "adapters"
    demo.copy_recipe(adapters_dir, target)
    assert content(target) == wanted
    request = JobRequest(adapter=demo.ADAPTER, profile=demo.PROFILE)
    assert resolve(target, request) == resolve(adapters_dir, request)


def test_a_changed_recipe_is_copied_again_beside_what_was_built(adapters_dir, tmp_path):
    target = tmp_path / "demo" / "adapters"
    demo.copy_recipe(adapters_dir, target)
    (target / "registry.yaml").write_text("adapters: {}")
    recipe = adapters_dir / "math" / "adapter.yaml"
    recipe.write_text(recipe.read_text() + "\n# changed\n")
    demo.copy_recipe(adapters_dir, target)
    assert content(target)[recipe.relative_to(adapters_dir)].endswith(b"# changed\n")
    assert (target / "registry.yaml").exists()


def test_the_demo_starts_apart(adapters_dir, tmp_path, monkeypatch):
    started = []

    class StackWithoutServices:
        def __init__(self, settings, **_):
            started.append(settings)

        def __enter__(self):
            raise LocoError("Enough was seen.", hint="None.")

        def __exit__(self, *_):
            """Never entered."""

    monkeypatch.setenv("LOCO_ADAPTERS_DIR", str(adapters_dir))
    monkeypatch.setenv("LOCO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(demo, "Stack", StackWithoutServices)
    before = content(adapters_dir)
    assert demo.main() == 1
    (settings,) = started
    assert settings.adapters_dir == tmp_path / "data" / "demo" / "adapters"
    assert content(settings.adapters_dir) == recipe_of(adapters_dir)
    assert content(adapters_dir) == before


@pytest.mark.parametrize("folder", ["data_dir", "adapters_dir"])
def test_both_folders_are_below_the_data_folder(settings, folder):
    found = getattr(demo.apart(settings), folder)
    assert found.is_relative_to(settings.data_dir / "demo")
