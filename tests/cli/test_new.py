"""`loco new`: what it leaves out is the last thing it says; the next commands say the same of the file."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.redis

ROWS = "".join(f"How many metres are {n} kilometres?,{n}000 metres\n" for n in range(2, 62))


@pytest.fixture
def here(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a laptop: the server's adapters are elsewhere."""
    folder = tmp_path / "laptop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def desk(here: Path) -> Path:
    """A file with an empty answer in line 62, an empty question in line 63, and a repeated one."""
    file = here / "desk.csv"
    again = "how many METRES are 2 kilometres,2000 metres\n"
    file.write_text(f'question,answer\n{ROWS}"Where is it?",\n,Nowhere\n{again}')
    return file


def test_rows_with_an_empty_cell_are_left_out_and_named_last(run, desk: Path) -> None:
    code, _, said = run("new", "desk", "--data", desk.name)
    assert code == 0
    lines = said.splitlines()
    assert lines[-6].startswith("Next: `loco check desk`")
    assert lines[-5:] == [
        "Left out: 1 row repeating a question.",
        "Left out: 2 rows that cannot be used:",
        "  line 62: blank answer. Fill in the answer, or remove the row.",
        "  line 63: blank question. Fill in the question, or remove the row.",
        "Do you need them? Fix desk.csv, delete the folder desk and run `loco new` again.",
    ]


def test_many_rows_are_counted_where_not_all_are_named(run, here: Path) -> None:
    (here / "many.csv").write_text(
        f"question,answer\n{ROWS}" + "".join(f"Where is {n}?,\n" for n in range(7))
    )
    said = run("new", "many", "--data", "many.csv")[2].splitlines()
    assert said[-8] == "Left out: 7 rows that cannot be used:"
    assert said[-2] == "  … and 2 more"


def test_a_draft_of_good_rows_ends_with_the_next_step(run, here: Path) -> None:
    (here / "good.csv").write_text(f"question,answer\n{ROWS}")
    said = run("new", "good", "--data", "good.csv")[2].splitlines()
    assert said[-1].startswith("Next: `loco check good`")


def test_an_upload_refuses_what_a_draft_leaves_out(run, desk: Path) -> None:
    code, _, said = run("data", "push", desk.name)
    assert code == 2
    assert "2 of 63 rows of desk cannot be used:\n  line 62: blank answer." in said
    assert "--skip-bad" in said
    assert run("data", "push", desk.name, "--skip-bad")[0] == 0


def test_a_submit_that_drafts_says_last_what_it_left_out(run, desk: Path) -> None:
    code, _, said = run("submit", "desk", "--data", desk.name)
    assert code == 0
    fix = said.split("Do you need them? ")[1]
    assert fix.startswith("Add them, fixed, to desk/rows.jsonl and raise prepare.examples in ")
    assert said.index("desk is on http") < said.index("line 62: blank answer")


def test_a_pushed_adapter_keeps_its_rows_when_the_uploads_are_deleted(
    run, client, here: Path, desk: Path
) -> None:
    run("new", "desk", "--data", desk.name)
    assert run("adapters", "push", "desk")[0] == 0
    for name in [entry.name for entry in client.datasets()]:
        code, _, said = run("data", "rm", name)
        assert code == 0
        assert "pushed adapters keep their own copies" in said
        assert f"`dataset: {name}`" in said
    assert run("adapters", "pull", "desk", "--to", "back")[0] == 0
    for name in ("rows.jsonl", "eval_dataset.jsonl"):
        assert (here / "back" / name).read_bytes() == (here / "desk" / name).read_bytes()


def test_check_names_an_empty_cell_of_a_recipes_rows_and_push_refuses_it(
    run, here: Path, desk: Path
) -> None:
    run("new", "desk", "--data", desk.name)
    with (here / "desk" / "rows.jsonl").open("a") as rows:
        rows.write('{"question": "Where is it?", "answer": ""}\n')
    code, shown, _ = run("check", "desk")
    assert code == 1
    assert "blank answer. Fill in the answer, or remove the row." in shown
    code, _, said = run("adapters", "push", "desk")
    assert code == 2
    assert "1 of 41 rows of desk-rows cannot be used" in said
