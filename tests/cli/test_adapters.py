"""`loco adapters push`: what a recipe has wrong is said before anything is uploaded, by its line."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from loco.cli import adapters, data

pytestmark = pytest.mark.redis

RECIPE = """\
name: desk
description: Which desk helps.
base_model: smollm2-135m-instruct
model_name: locollm-desk

prepare: {source: {kind: jsonl, path: rows.jsonl}, examples: 30, validation: 0}

train:
  epochs: 3
eval: {sets: {}}
profiles: {tiny: {train: {learning_rate: 1.0e-3}}}
"""
WRONG = RECIPE.replace("epochs: 3", "epochs: three")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter's folder, with no catalog beside it."""
    folder = tmp_path / "laptop" / "desk"
    folder.mkdir(parents=True)
    rows = [{"question": f"Who lends book {n}?", "answer": f"Desk {n}"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "adapter.yaml").write_text(RECIPE)
    return folder


def test_data_sets_have_the_adapters_name_in_front(run, client, folder: Path) -> None:
    code, _, said = run("adapters", "push", "desk", "--from", str(folder))
    assert code == 0, said
    assert [entry.name for entry in client.datasets()] == ["desk-rows"]


def test_a_wrong_field_is_named_by_its_line_and_nothing_is_uploaded(
    run, client, folder: Path
) -> None:
    (folder / "adapter.yaml").write_text(WRONG)
    code, _, said = run("adapters", "push", "desk", "--from", str(folder))
    assert code == 2
    assert said.startswith("error: adapter.yaml, line 9: train.epochs: ")
    assert list(client.datasets()) == []


def test_a_base_that_the_server_does_not_have_is_refused_before_the_upload(
    run, client, folder: Path
) -> None:
    (folder / "adapter.yaml").write_text(RECIPE.replace("135m-instruct", "135m"))
    code, _, said = run("adapters", "push", "desk", "--from", str(folder))
    assert code == 2
    assert said.startswith("error: adapter.yaml, line 3: No base model 'smollm2-135m'.")
    assert "Did you mean smollm2-135m-instruct?" in said
    assert list(client.datasets()) == []


def test_a_server_of_another_release_looks_itself_and_names_the_line_too(
    run, client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "release", lambda: "0.0.1")
    (folder / "adapter.yaml").write_text(WRONG)
    code, _, said = run("adapters", "push", "desk", "--from", str(folder))
    assert code == 2
    assert said.startswith("error: adapter.yaml, line 9: train.epochs: ")
    assert [entry.name for entry in client.datasets()] == ["desk-rows"]


def test_list_is_what_the_group_alone_does(run) -> None:
    code, shown, said = run("adapters", "list")
    assert code == 0, said
    assert "math" in shown
    assert shown == run("adapters")[1]
    assert run("adapters", "list", "--json") == run("adapters", "--json")


@pytest.mark.parametrize("long", [True, False])
def test_only_a_long_upload_has_a_bar_and_it_names_its_file(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    shown = Console(force_terminal=True, width=100, record=True, stderr=True)
    monkeypatch.setattr(data, "stderr", lambda: shown)
    if long:
        monkeypatch.setattr(data, "_LONG_BYTES", 1)
    assert run("adapters", "push", "desk", "--from", str(folder))[0] == 0
    assert ("uploading rows.jsonl" in shown.export_text()) == long


@pytest.mark.parametrize(
    "words", [("plan",), ("submit",), ("sweep", "--set", "train.epochs=1,2")], ids=lambda w: w[0]
)
def test_an_adapter_whose_recipe_lies_here_is_to_be_pushed_first(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Before: `loco new desk`, which had been done."""
    command, *more = words
    monkeypatch.chdir(folder.parent)
    code, _, said = run(command, "desk", *more)
    assert code == 2
    assert "error: No adapter 'desk'. Adapters here: " in said
    assert f"fix: Its recipe is here ({folder / 'adapter.yaml'}). Push it first: " in said
    assert "`loco adapters push desk`" in said
    assert "`loco new other --data rows.csv`" in run(command, "other", *more)[2]
    assert "fix: " in run(command, "../other", *more)[2]
