"""From a file of rows to a recipe that resolves, training rows and an eval set apart from them."""

import csv
import json
from pathlib import Path

import pytest

from loco.contracts.errors import Conflict, DataError, InvalidRequest
from loco.contracts.requests import JobRequest
from loco.datasets.overlap import normalise
from loco.datasets.split import problems_of
from loco.drafting import draft, rows
from loco.grading.eval_items import load_eval_items
from loco.recipes.resolve import load_recipe, resolve


def table(path: Path, lines: list[tuple[str, str]], *, header=("question", "answer")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def sums(count: int) -> list[tuple[str, str]]:
    return [(f"How many metres are {n} kilometres?", f"{n}000 metres") for n in range(2, 2 + count)]


@pytest.fixture
def drafted(tmp_path: Path, adapters_dir: Path):
    def make(lines, name="units", **options) -> draft.Draft:
        file = table(tmp_path / "rows.csv", lines, **options)
        mapping = {"question": "Frage", "answer": "Antwort"} if options else None
        found = rows.divided(file, mapping=mapping)
        return draft.write(adapters_dir / name, name, found, base="qwen3-4b", seed=0)

    return make


@pytest.mark.parametrize("count", [6, 60, 400])
def test_every_profile_resolves_and_no_question_is_in_both_parts(
    drafted, adapters_dir: Path, count: int
) -> None:
    written = drafted(sums(count))
    assert load_recipe(adapters_dir, "units").profile_names == ("default", "tiny")
    for profile in ("default", "tiny"):
        spec = resolve(adapters_dir, JobRequest(adapter="units", profile=profile))
        assert spec.prepare.examples + spec.prepare.validation == len(written.divided.training)
    items = load_eval_items(written.folder / draft.PROBLEMS)
    lines = (written.folder / draft.ROWS).read_text().splitlines()
    asked = {normalise(json.loads(line)["question"]) for line in lines}
    assert not asked & {normalise(item.question) for item in items}
    assert len(items) == problems_of(count, share=rows.SHARE, most=rows.MOST_PROBLEMS)
    assert len(items) + len(lines) == count
    assert {item.grader.kind for item in items if item.grader} == {"words"}


def test_tiny_sees_rows_half_as_often_as_it_learns_faster(drafted, adapters_dir: Path) -> None:
    drafted(sums(60))
    epochs = {
        profile: resolve(adapters_dir, JobRequest(adapter="units", profile=profile)).train.epochs
        for profile in ("default", "tiny")
    }
    assert epochs == {"default": 12, "tiny": 6}


def test_the_same_seed_gives_the_same_split_and_another_another(tmp_path: Path) -> None:
    file = table(tmp_path / "rows.csv", sums(60))

    def lines(seed: int) -> list[int]:
        return [row.line for row in rows.divided(file, seed=seed).problems]

    assert lines(1) == lines(1) != lines(2)


def test_columns_are_mapped_duplicates_and_bad_rows_left_out_and_counted(drafted) -> None:
    lines = [*sums(20), ("how many METRES are 2 kilometres", "again"), ("", "no question")]
    found = drafted(lines, header=("Frage", "Antwort")).divided
    assert (found.read, found.duplicates, found.bad_count) == (22, 1, 1)
    assert "line 23" in str(found.bad[0])


def test_a_name_of_a_file_cannot_write_into_the_recipe(tmp_path: Path, adapters_dir: Path) -> None:
    odd = tmp_path / 'a"\nname: evil # {x}.csv'
    found = rows.divided(table(odd, sums(20)))
    draft.write(adapters_dir / "units", "units", found, base="qwen3-4b", seed=0)
    recipe = load_recipe(adapters_dir, "units")
    assert recipe.name == "units"
    assert odd.name in recipe.description


def test_nothing_is_written_over_and_wrong_names_are_refused(drafted, tmp_path: Path) -> None:
    drafted(sums(10))
    with pytest.raises(Conflict, match="already exists"):
        drafted(sums(10))
    with pytest.raises(InvalidRequest, match="cannot be the name"):
        draft.place_of("../units", tmp_path)
    with pytest.raises(DataError, match="5 usable rows"):
        drafted(sums(5), name="few")
    found = rows.divided(table(tmp_path / "r.csv", sums(10)))
    with pytest.raises(InvalidRequest, match="--base"):
        draft.write(tmp_path / "x", "x", found, base="qwen: {a}", seed=0)
    assert not (tmp_path / "x").exists()
