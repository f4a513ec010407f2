"""What is looked at before a recipe that is put changes anything."""

from pathlib import Path

import pytest
import yaml
from units_recipe import RECIPE

from loco.contracts.errors import Conflict, InvalidRequest, LocoError
from loco.contracts.recipes import RecipePut
from loco.drafting import checks, folders, shelf
from loco.recipes.catalog import load_catalog
from loco.recipes.plain import ensure_plain

#: As fine-tuning requests make them.
BROUGHT = """
name: ft-qwen3-4b-x
description: Ours.
base_model: qwen3-4b
model_name: locollm-ft-qwen3-4b-x
eval: {sets: {}}
"""
FILES = {"rows.jsonl": "rows", "problems.jsonl": "problems"}
SAME = ("Units.", "Units.")


@pytest.fixture
def content(tmp_path: Path):
    (tmp_path / "rows").write_text('{"question": "1 km?", "answer": "1000 m"}\n')
    (tmp_path / "problems").write_text('{"question": "9 km?", "answer": "9000 m"}\n')
    (tmp_path / "bad").write_text('{"question": "9 km?"}\n')
    return lambda name: tmp_path / name


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (("name: units", "name: other"), {}, "the folder is 'units'"),
        (("epochs: 1", "epochs: -1"), {}, "(profile tiny): train.epochs"),
        (("epochs: 1", "epoch: 1"), {}, "(profile tiny): train.epoch: unknown field"),
        (("smollm2-135m-instruct", "gpt-9"), {}, "No base model 'gpt-9'"),
        (("locollm-units", "locollm-math"), {}, "is already the model of adapter 'math'"),
        (("rows.jsonl", "../math/adapter.yaml"), {}, "was not sent with the recipe and"),
        (("rows.jsonl", "/etc/passwd"), {}, "is outside the folders"),
        (("rows.jsonl", "more.jsonl"), {}, "'more.jsonl' was not sent"),
        (SAME, {"extra.jsonl": "rows"}, "files.extra.jsonl: the recipe does not name this file"),
        (SAME, {"problems.jsonl": "bad"}, "line 1: answer: missing"),
        (("name: units", "name: [units"), {}, "not valid YAML"),
        (SAME, {"adapter.yaml": "rows"}, "stages write a file with this name"),
        (SAME, {"training_data.jsonl": "rows"}, "stages write a file"),
    ],
)
def test_what_cannot_be_used_changes_nothing(
    settings, content, adapters_dir: Path, change, more, said
) -> None:
    asked = RecipePut(recipe=RECIPE.replace(*change), files={**FILES, **more})
    with pytest.raises(LocoError) as refused:
        shelf.put(settings, "units", asked, content, by="me")
    assert said in refused.value.message
    assert not (adapters_dir / "units").exists()
    assert not list((adapters_dir / ".incoming").glob("*"))


def test_what_nothing_names_any_more_goes_and_other_files_stay(
    settings, content, adapters_dir: Path
) -> None:
    first, is_new = shelf.put(
        settings, "units", RecipePut(recipe=RECIPE, files=FILES), content, by="me"
    )
    assert is_new
    (adapters_dir / "units" / "notes.txt").write_text("mine")
    asked = RecipePut(recipe=RECIPE.replace("rows.jsonl", "new.jsonl"), files={"new.jsonl": "rows"})
    _, is_new = shelf.put(settings, "units", asked, content, by="me", if_match=first.etag)
    assert not is_new
    beside = {p.name for p in (adapters_dir / "units").iterdir()}
    assert beside == {".recipes", "adapter.yaml", "new.jsonl", "problems.jsonl", "notes.txt"}


def test_a_folder_in_a_files_place_is_refused_and_bricks_nothing(
    settings, content, adapters_dir: Path
) -> None:
    """Before: the change began, failed, and every later look at the adapter failed with it."""
    asked = RecipePut(recipe=RECIPE, files=FILES)
    first, _ = shelf.put(settings, "units", asked, content, by="me")
    (adapters_dir / "units" / "taken").mkdir()
    more = RecipePut(recipe=RECIPE.replace("rows.jsonl", "taken"), files={"taken": "rows"})
    with pytest.raises(InvalidRequest, match="is not a file") as refused:
        shelf.put(settings, "units", more, content, by="me", if_match=first.etag)
    assert refused.value.param == "files.taken"
    assert shelf.recipe_text(settings, "units").etag == first.etag


def test_adapters_of_fine_tuning_requests_take_no_place_of_recipes(
    settings, content, monkeypatch
) -> None:
    root = settings.adapters_dir
    monkeypatch.setattr(shelf, "MOST_ADAPTERS", len(shelf.adapter_names(root)) + 1)
    base = load_catalog(root)["smollm2-135m-instruct"]
    ensure_plain(root, base, None, "bob")
    shelf.put(settings, "units", RecipePut(recipe=RECIPE, files=FILES), content, by="ann")
    other = RecipePut(recipe=RECIPE.replace("units", "others"), files=FILES)
    with pytest.raises(Conflict, match="adapters"):
        shelf.put(settings, "others", other, content, by="ann")


def test_a_recipe_whose_jobs_bring_the_rows_is_read_and_put_back(
    settings, content, adapters_dir: Path
) -> None:
    name = "ft-qwen3-4b-x"
    (adapters_dir / name).mkdir()
    (adapters_dir / name / "adapter.yaml").write_text(BROUGHT)
    found = shelf.recipe_text(settings, name)
    assert found.files == {}
    put, is_new = shelf.put(
        settings, name, RecipePut(recipe=found.recipe), content, by="me", if_match=found.etag
    )
    assert (put.recipe, is_new) == (found.recipe, False)
    for catalog in (adapters_dir / "base_models.yaml", None):
        folder = (
            adapters_dir / name
            if catalog
            else (adapters_dir / name).rename(adapters_dir.parent / name)
        )
        checked = checks.check(folder, name, catalog=catalog)
        assert checked.problems == []
        assert "The recipe has no prepare.source, so each job must bring its rows." in checked.notes


def test_an_eval_set_that_the_recipe_does_not_name_travels_with_it(
    settings, content, adapters_dir: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load(RECIPE)
    recipe["eval"] = {}
    text = yaml.safe_dump(recipe)
    (tmp_path / "rows.jsonl").write_bytes(content("rows").read_bytes())
    assert set(folders.files_of(tmp_path, text)) == {"rows.jsonl"}
    (tmp_path / "eval_dataset.jsonl").write_bytes(content("problems").read_bytes())
    files = folders.files_of(tmp_path, text)
    assert set(files) == {"rows.jsonl", "eval_dataset.jsonl"}
    asked = RecipePut(recipe=text, files={"rows.jsonl": "rows", "eval_dataset.jsonl": "problems"})
    put, _ = shelf.put(settings, "units", asked, content, by="me")
    assert set(put.files) == set(files)
    # it stays with a put that does not send it, as other files do
    changed = RecipePut(recipe=text + "# changed\n", files={})
    shelf.put(settings, "units", changed, content, by="me", if_match=put.etag)
    assert (adapters_dir / "units" / "eval_dataset.jsonl").is_file()
