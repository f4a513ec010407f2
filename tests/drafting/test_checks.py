"""What `loco check` finds, each by its line."""

import json
from pathlib import Path

import pytest
import yaml

from loco.contracts.errors import InvalidRequest, Unseen
from loco.contracts.looks import LookRequest
from loco.drafting import checks, draft, looking, rows


@pytest.fixture
def folder(tmp_path: Path, adapters_dir: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"question": f"{n} km in m?", "answer": f"{n}000 m"} for n in range(2, 32)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = adapters_dir / "units"
    draft.write(target, "units", rows.divided(file), base="qwen3-4b", seed=0)
    return target


def test_a_fresh_draft_has_no_problem_and_its_rows_are_looked_at(folder: Path) -> None:
    found = checks.check(folder, "units", "tiny")
    assert found.problems == []
    assert len(found.rows) == 20
    request = checks.request_of(found)
    assert request is not None
    assert request.base_model == "smollm2-135m-instruct"
    assert [row.line for row in request.rows] == list(range(1, 21))


@pytest.mark.parametrize("known", [True, False])
def test_a_folder_without_a_catalog_beside_it_is_looked_at_too(
    folder: Path, adapters_dir: Path, tmp_path: Path, known: bool
) -> None:
    alone = folder.rename(tmp_path / "units")
    catalog = adapters_dir / "base_models.yaml" if known else None
    found = checks.check(alone, "units", "tiny", catalog=catalog)
    assert (found.problems, len(found.rows), found.items) == ([], 20, 10)
    assert (found.spec is not None) == known
    with (alone / "rows.jsonl").open("a") as file:
        file.write('{"question": "x"}\n')
    (fault,) = checks.check(alone, "units", "tiny", catalog=catalog).problems
    assert "rows.jsonl, line 21" in fault


def test_every_fault_is_named_by_its_line(folder: Path) -> None:
    recipe = folder / "adapter.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 1.0e-3", "learning_rate: -1"))
    place = next(
        n for n, line in enumerate(recipe.read_text().splitlines(), 1) if "rate: -1" in line
    )
    data = folder / "rows.jsonl"
    problem = (folder / "eval_dataset.jsonl").read_text().splitlines()[0]
    first = data.read_text().splitlines()[0]
    data.write_text(f'{data.read_text()}{problem}\n{{"question": "x"}}\n{first}\n')
    found = checks.check(folder, "units")
    said = "\n".join(found.problems)
    assert f"line {place} (profile tiny): train.learning_rate" in said
    assert "rows.jsonl, line 21: overlaps held_out" in said
    assert "rows.jsonl, line 22: no question or no answer" in said
    assert "rows.jsonl, line 23: the same question as line 1" in said
    assert len(found.rows) == 20


def test_a_fault_of_the_recipe_itself_comes_once_and_names_no_profile(folder: Path) -> None:
    """Before: `profile default`, and once more for `tiny` with the line of that profile's section."""
    recipe = folder / "adapter.yaml"
    recipe.write_text(recipe.read_text().replace("gradient_accumulation: 1", "batch: many"))
    line = _line_with(recipe, "batch: many")
    (fault,) = checks.check(folder, "units").problems
    assert fault.startswith(f"adapter.yaml, line {line}: train.batch: unknown field.")


def test_a_fault_that_only_a_profile_has_names_it(folder: Path) -> None:
    recipe = folder / "adapter.yaml"
    text = recipe.read_text().replace("default: {}", "default: {}\n  twice: {evel: {}}")
    recipe.write_text(text)
    (fault,) = checks.check(folder, "units").problems
    line = _line_with(recipe, "twice:")
    assert fault.startswith(f"adapter.yaml, line {line} (profile twice): ")
    assert "adapter.yaml: " not in fault


def test_an_unknown_section_is_named_by_its_line(folder: Path) -> None:
    recipe = folder / "adapter.yaml"
    recipe.write_text(recipe.read_text().replace("\ntrain:", "\ntrian:"))
    with pytest.raises(InvalidRequest, match=f", line {_line_with(recipe, 'trian:')}: trian: "):
        checks.check(folder, "units")


def _line_with(file: Path, words: str) -> int:
    lines = file.read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if words in line)


def test_an_answer_that_the_grader_cannot_read_is_named(folder: Path) -> None:
    problems = folder / "eval_dataset.jsonl"
    line = json.dumps({"id": "n", "question": "?", "answer": "many", "grader": "numeric"})
    problems.write_text(f"{problems.read_text()}{line}\n")
    (found,) = checks.check(folder, "units").problems
    assert "line 11: answer: 'many' is not a number" in found


def test_without_a_training_environment_it_says_so(folder: Path, settings) -> None:
    found = checks.check(folder, "units", "tiny")
    request = checks.request_of(found)
    assert isinstance(request, LookRequest)
    bare = settings.model_copy(update={"train_python": folder / "none"})
    with pytest.raises(Unseen, match="no training environment"):
        looking.look(bare, request)


def test_rows_of_many_turns_are_not_asked_about_and_named(folder: Path) -> None:
    turns = [{"role": role, "content": "1"} for role in ("user", "assistant")] * 26
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"messages": turns}) + "\n")
    found = checks.check(folder, "units", "tiny")
    assert len(found.rows) == 21, found.problems
    request = checks.request_of(found)
    assert request is not None
    assert len(request.rows) == 20
    assert any("more than 50 turns were not checked (lines 21)" in note for note in found.notes)


@pytest.mark.parametrize("end", ["kill -9 $$", "exit 71"])
def test_a_look_that_takes_too_much_is_told(folder: Path, settings, end: str) -> None:
    request = checks.request_of(checks.check(folder, "units", "tiny"))
    assert request is not None
    python = folder / "python"
    python.write_text(f"#!/bin/sh\ncat > /dev/null\n{end}\n")
    python.chmod(0o755)
    with pytest.raises(Unseen, match="too much memory or time"):
        looking.look(settings.model_copy(update={"train_python": python}), request)


@pytest.mark.parametrize("known", [True, False])
def test_rows_are_held_back_where_no_eval_set_is_named(
    folder: Path, adapters_dir: Path, tmp_path: Path, known: bool
) -> None:
    recipe = yaml.safe_load((folder / "adapter.yaml").read_text())
    del recipe["eval"]["sets"]
    (folder / "eval_dataset.jsonl").unlink()
    (folder / "adapter.yaml").write_text(yaml.safe_dump(recipe))
    alone = folder.rename(tmp_path / "units")
    catalog = adapters_dir / "base_models.yaml" if known else None

    def rows_of(first: int, count: int) -> None:
        lines = [{"question": f"{n} km in m?", "answer": f"{n}000 m"} for n in range(first, count)]
        (alone / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    rows_of(2, 62)
    found = checks.check(alone, "units", "tiny", catalog=catalog)
    assert (found.problems, len(found.rows), found.items) == ([], 40, 20)
    said = "\n".join(found.notes)
    assert "eval.sets.split: 20 rows are held back to measure with. Grader words" in said
    rows_of(2, 12)
    few = checks.check(alone, "units", "tiny", catalog=catalog)
    assert (len(few.rows), few.items) == (10, 0)
    assert "30 are the least" in "\n".join(few.notes)
